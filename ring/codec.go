package ring

import "errors"

// MarshalJSON encodes the ring.
func (r *Ring) MarshalJSON() ([]byte, error) { return nil, errors.New("not yet") }

// UnmarshalJSON decodes a ring from bytes that need not be trusted.
func (r *Ring) UnmarshalJSON(b []byte) error { return errors.New("not yet") }
