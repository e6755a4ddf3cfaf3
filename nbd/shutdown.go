package nbd

import (
	"context"
	"time"
)

// linger is how long a client has to hang up once it was told that the server
// goes. Closing at once would reset the connection if the client has sent more,
// and take answers away that it has not read yet.
const linger = time.Second

// Shutdown stops the server cleanly: no more connections and exports are
// opened, requests that have arrived are finished and answered, later ones get
// ESHUTDOWN, then connections close. When it returns nil nothing of the server
// runs any more. When ctx ends first, connections are cut and its error is
// returned; requests that devices still hold are then unanswered, and their
// goroutines end when the devices return.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.shut
	s.shut = true
	s.cancel()
	for l := range s.listeners {
		l.Close()
	}
	if first {
		for nc := range s.handshakes {
			nc.SetDeadline(time.Now().Add(linger))
		}
		for c := range s.conns {
			c.drain(ctx)
		}
	}
	s.mu.Unlock()

	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		s.cut()
		return ctx.Err()
	}
	s.finish.Do(func() {
		s.limit.close()
		s.workers.close()
		close(s.done)
		s.background.Wait()
		s.buffers.drop()
	})
	return nil
}

// cut closes all connections.
func (s *Server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for nc := range s.handshakes {
		nc.Close()
	}
	for c := range s.conns {
		c.nc.Close()
	}
}

// drain has c answer what has arrived and nothing more, and then tells the
// client that this was all.
func (c *conn) drain(ctx context.Context) {
	if c.draining.Swap(true) {
		return
	}
	c.srv.wg.Add(1) // of the connection, which is counted itself: so not from 0
	go func() {
		defer c.srv.wg.Done()
		c.waitIdle()
		if cw, ok := c.nc.(interface{ CloseWrite() error }); ok {
			cw.CloseWrite()
		}
		d := time.Now().Add(linger)
		if end, ok := ctx.Deadline(); ok && end.Before(d) {
			d = end
		}
		c.nc.SetReadDeadline(d)
	}()
}
