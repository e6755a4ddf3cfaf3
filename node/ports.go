package node

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"

	"torus/cluster"
)

// portsPerNode: API, blocks, etcd's clients, etcd's peers.
const portsPerNode = 4

// Free bases are looked for below the ports that Linux gives to outgoing
// connections (32768 and up), which come and go.
const (
	firstFreePort = 10000
	lastFreePort  = 32000
	portTries     = 200
)

// freePorts returns the base of four neighbouring ports that nobody listens on.
func freePorts(host netip.Addr) (int, error) {
	for range portTries {
		base := firstFreePort + rand.IntN((lastFreePort-firstFreePort)/portsPerNode)*portsPerNode
		if portsFree(host, base) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("no %d neighbouring free ports on %v found in %d tries between %d and %d",
		portsPerNode, host, portTries, firstFreePort, lastFreePort)
}

func portsFree(host netip.Addr, base int) bool {
	for i := range portsPerNode {
		l, err := net.Listen("tcp", addrPort(host, base+i))
		if err != nil {
			return false
		}
		defer l.Close()
	}
	return true
}

func addrPort(host netip.Addr, port int) string {
	return net.JoinHostPort(host.String(), strconv.Itoa(port))
}

// tryEtcdPorts finds out early whether etcd, which opens them itself, will
// find its ports in use.
func (s Settings) tryEtcdPorts() error {
	if !s.Has(cluster.RoleEtcd) {
		return nil
	}
	for _, port := range []int{s.Port + 2, s.Port + 3} {
		addr := addrPort(s.Listen, port)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("etcd on %s: %w: choose another base port with --port, or any free one with --port 0", addr, cause(err))
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}
