package remote

// ServerStats are plain counters, for metrics and status.
type ServerStats struct {
	Connections int // that were greeted or still are
	Running     int // requests that were read and not yet answered
	Volumes     int // attachments remembered
}

// Stats may be called at any time.
func (s *Server) Stats() ServerStats {
	var st ServerStats
	s.mu.Lock()
	st.Connections = len(s.conns)
	for c := range s.conns {
		c.limit.mu.Lock()
		st.Running += c.limit.running
		c.limit.mu.Unlock()
	}
	s.mu.Unlock()
	s.attached.mu.RLock()
	defer s.attached.mu.RUnlock()
	st.Volumes = len(s.attached.volumes)
	return st
}
