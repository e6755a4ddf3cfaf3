package remote

import (
	"net"
	"testing"
	"testing/synctest"
)

// Who keeps the beat is not held up by a client that reads nothing, nor by what
// others leave to be sent meanwhile.
func TestBeatIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, client := net.Pipe()
		c := newServerConn(NewServer(ServerOptions{}), nc)
		kept := make(chan struct{})
		go func() {
			defer close(kept)
			for n := range uint64(3) {
				c.out.alive(n)
			}
		}()
		synctest.Wait()
		select {
		case <-kept:
		default:
			t.Error("the keeper waits for the client")
		}
		client.Close()
		nc.Close()
		<-kept
		c.out.beats.Wait()
	})
}
