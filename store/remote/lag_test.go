package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"torus/store"
)

// A server that says it lives, and has not read what was sent for long, is let
// go: what it would answer is as far behind.
func TestServerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Time, 1)
		var servers sync.WaitGroup
		defer servers.Wait()
		c := NewClient(ClientOptions{Addr: "lagging:1", Cluster: "c", Node: 1, Connections: 1,
			Dial: func(context.Context, string) (net.Conn, error) {
				a, b := net.Pipe()
				servers.Go(func() { lag(b, ended) })
				return a, nil
			}})
		defer c.Close()
		began := time.Now()
		if _, err := c.Attach(t.Context(), 1, 1); !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("attached with %v", err)
		}
		const least, most = clientLag * beat, (clientLag + 3) * beat
		if took := (<-ended).Sub(began); took < least || took > most {
			t.Errorf("let go after %v, want %v to %v", took, least, most)
		}
	})
}

// lag greets, and then answers every beat with the first.
func lag(nc net.Conn, ended chan<- time.Time) {
	defer nc.Close()
	if _, err := readHello(nc); err != nil {
		return
	}
	own := hello{version: protocolVersion, node: 1, session: 8, cluster: "c"}
	if _, err := nc.Write(own.append(nil)); err != nil {
		return
	}
	go io.Copy(io.Discard, nc) // until the client ends it
	frame := make([]byte, answerSize)
	a := answer{op: opAlive, id: 1}
	a.encode(frame)
	for {
		time.Sleep(beat)
		if _, err := nc.Write(frame); err != nil {
			break
		}
	}
	select {
	case ended <- time.Now():
	default: // not the first
	}
}
