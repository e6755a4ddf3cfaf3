package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"torus/cluster"
	"torus/nbd"
)

const (
	// shutdownPatience bounds how long requests under way may take when the node stops.
	shutdownPatience = 30 * time.Second
	// heldPatience bounds it where requests wait for copies that are missing: nobody
	// knows for how long.
	heldPatience = 5 * time.Second
	// heldEvery is how often that is looked at.
	heldEvery = 250 * time.Millisecond
)

// socketMode lets only the node's user connect to a Unix socket.
const socketMode = 0o600

// checkExports refuses addresses that checkNBD does.
func (s Settings) checkExports() error {
	for _, addr := range s.NBD.Listen {
		if err := s.checkNBD(addr); err != nil {
			return err
		}
	}
	return nil
}

// checkNBD refuses an address where strangers could read what is sent.
func (s Settings) checkNBD(addr string) error {
	if isPath(addr) {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: NBD address %q is neither HOST:PORT nor the path of a Unix socket, with / or . as its first letter", ErrSettings, addr)
	}
	ip, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && ip.IsLoopback()
	if loopback || s.Insecure || s.NBD.Cert != "" && !s.NBD.TLSOptional {
		return nil
	}
	return fmt.Errorf("%w: NBD address %s: volumes would cross the network unencrypted, open to whoever connects: "+
		"use TLS (--tls-cert, --tls-key, --tls-ca), or accept that with --insecure", ErrSettings, addr)
}

// isPath reports whether an address is that of a Unix socket.
func isPath(addr string) bool { return strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, ".") }

// listenNBD opens the listeners: those of the settings, and what systemd handed
// over.
func (n *Node) listenNBD() ([]net.Listener, error) {
	if !n.settings.Has(cluster.RoleNBD) {
		return nil, nil
	}
	ls, err := nbd.Activated()
	if err != nil {
		return nil, err
	}
	for _, addr := range n.settings.NBD.Listen {
		l, err := nbd.Listen(addr, socketMode)
		if err != nil {
			return ls, fmt.Errorf("NBD on %s: %w: choose another address", addr, cause(err))
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// newServer makes the NBD server, not serving yet.
func (n *Node) newServer(only []string) (*nbd.Server, error) {
	n.exports = newExports(n, only)
	o := nbd.Options{Exports: n.exports, Logger: n.log.With("part", "nbd")}
	t := n.settings.NBD
	if t.Cert != "" || t.Key != "" || t.ClientCA != "" {
		c, err := nbd.LoadTLS(nbd.TLSFiles{Cert: t.Cert, Key: t.Key, ClientCA: t.ClientCA})
		if err != nil {
			return nil, err
		}
		o.TLS, o.TLSMode = c, nbd.TLSRequired
		if t.TLSOptional {
			o.TLSMode = nbd.TLSOffered
		}
	}
	return nbd.NewServer(o)
}

// startNBD serves volumes, all of them if only is nil. Stopping finishes the
// requests under way, and then detaches the volumes.
func (n *Node) startNBD(only []string) (err error) {
	if len(n.nbdListeners) == 0 {
		return nil
	}
	if n.nbd, err = n.newServer(only); err != nil {
		return err
	}
	n.started("exports", n.exports.close)
	n.exports.startFollowing()
	var wg sync.WaitGroup
	for _, l := range n.nbdListeners {
		wg.Go(func() {
			if err := n.nbd.Serve(l); !errors.Is(err, nbd.ErrServerClosed) {
				n.fail(fmt.Errorf("NBD on %v: %w", l.Addr(), err))
			}
		})
	}
	n.started("nbd", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownPatience)
		defer cancel()
		ctx, end := n.untilHeld(ctx)
		err := n.nbd.Shutdown(ctx)
		end()
		wg.Wait()
		return err
	})
	return nil
}

// untilHeld returns a context that ends with ctx, and when requests to some volume
// have waited for copies for heldPatience. end is to be called.
func (n *Node) untilHeld(ctx context.Context) (held context.Context, end func()) {
	held, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		free := time.Now()
		for held.Err() == nil {
			waiting := n.reloading.Load() > 0
			n.holding.each(func(a *attached) { waiting = waiting || a.vol.Status().Waiting != "" })
			if !waiting {
				free = time.Now()
			}
			if time.Since(free) >= heldPatience {
				cancel()
			}
			pause(held, heldEvery)
		}
	})
	return held, func() {
		cancel()
		watching.Wait()
	}
}

// queryPath makes an escaped query value what URI parsers other than those of
// forms take too, and a path readable.
var queryPath = strings.NewReplacer("%2F", "/", "+", "%20")

// URI returns how NBD clients name a volume that is exported at addr.
func URI(addr net.Addr, volume string, tls bool) string {
	scheme := "nbd"
	if tls {
		scheme = "nbds"
	}
	if addr.Network() == "unix" {
		path := addr.String()
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		return fmt.Sprintf("%s+unix:///%s?socket=%s", scheme, volume, queryPath.Replace(url.QueryEscape(path)))
	}
	host, port, err := net.SplitHostPort(addr.String())
	if ip, perr := netip.ParseAddr(host); err == nil && perr == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.Is6() {
			host = "::1"
		}
	}
	return fmt.Sprintf("%s://%s/%s", scheme, net.JoinHostPort(host, port), volume)
}
