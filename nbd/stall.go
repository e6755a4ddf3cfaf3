package nbd

import "time"

// watchStalls closes connections whose clients leave payloads half sent or
// replies unread, when that holds memory for which others wait. As long as
// nobody waits, a client may be as slow as it likes.
func (s *Server) watchStalls() {
	every := max(s.opt.StallTimeout/4, time.Millisecond)
	t := time.NewTicker(every)
	defer t.Stop()
	seen := make(map[*conn]stall)
	for {
		select {
		case <-s.done:
			return
		case now := <-t.C:
			if !s.limit.contended() {
				clear(seen)
				continue
			}
			s.mu.Lock()
			conns := make([]*conn, 0, len(s.conns))
			for c := range s.conns {
				conns = append(conns, c)
			}
			s.mu.Unlock()
			s.closeStalled(conns, seen, now)
		}
	}
}

// A stall is a connection that moves no bytes though it should.
type stall struct {
	since time.Time
	moved int64
}

func (s *Server) closeStalled(conns []*conn, seen map[*conn]stall, now time.Time) {
	for _, c := range conns {
		stuck, moved := c.wire.blocked()
		was, known := seen[c]
		switch {
		case !stuck:
			delete(seen, c)
		case !known || was.moved != moved:
			seen[c] = stall{now, moved}
		case now.Sub(was.since) >= s.opt.StallTimeout:
			c.log.Warn("client stalled while others wait for memory: disconnected", "for", now.Sub(was.since))
			c.nc.Close()
			delete(seen, c)
		}
	}
}
