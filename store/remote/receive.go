package remote

import (
	"fmt"
	"slices"
)

// receive reads answers until the connection ends.
func (c *conn) receive() error {
	for {
		h, err := c.in.next(answerSize)
		if err != nil {
			return err
		}
		var a answer
		if err := a.decode(h); err != nil {
			return err
		}
		if a.op == opAlive {
			c.echo.Store(a.id)
			continue
		}
		if err := c.accept(&a); err != nil {
			return err
		}
	}
}

// accept reads the rest of one answer and gives it to its call.
func (c *conn) accept(a *answer) error {
	c.mu.Lock()
	k, err := c.answeredCall(a)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	if k == nil {
		c.mu.Unlock()
		if err := c.in.skip(int64(a.body)); err != nil {
			return err
		}
		c.mu.Lock()
		c.vacate(uint32(a.id))
		c.mu.Unlock()
		return nil
	}
	if a.body > 0 {
		k.reading = true
		c.mu.Unlock()
		if err := c.fill(k, a); err != nil {
			return err
		}
		c.mu.Lock()
		k.reading = false
	} else if err := k.accept(a); err != nil {
		c.mu.Unlock()
		return err
	}
	k.answered = true
	if !k.writing {
		c.finish(k)
	}
	c.mu.Unlock()
	return nil
}

// answeredCall returns the call that a is for, nil if it was given up. Called
// with mu held.
func (c *conn) answeredCall(a *answer) (*call, error) {
	n := uint32(a.id)
	if n >= uint32(len(c.slots)) || !c.slots[n].busy || c.slots[n].generation != uint32(a.id>>32) || c.slots[n].op != a.op {
		return nil, fmt.Errorf("answer to a %v that was not asked", a.op)
	}
	k := c.slots[n].call
	if k != nil && (k.stage == queued || k.answered) {
		return nil, fmt.Errorf("answer to a %v that was not sent, or a second one", a.op)
	}
	return k, nil
}

// fill reads the body of an answer into its call.
func (c *conn) fill(k *call, a *answer) error {
	var sum uint32
	var err error
	left := int(a.body)
	if a.errno == errnoNone && k.in != nil {
		if left < len(k.in) || k.info == nil && left > len(k.in) {
			return fmt.Errorf("%d bytes answer a read of %d", left, len(k.in))
		}
		if sum, err = c.in.full(k.in, 0); err != nil {
			return err
		}
		left -= len(k.in)
	}
	if left > max(listBody, runSize*len(k.info)) {
		return fmt.Errorf("%v answered with %d bytes", a.op, a.body)
	}
	k.body = slices.Grow(k.body[:0], left)[:left]
	if sum, err = c.in.full(k.body, sum); err != nil {
		return err
	}
	if sum != a.bodySum {
		return fmt.Errorf("body of a %v's answer has checksum %#x, its header says %#x", a.op, sum, a.bodySum)
	}
	return k.accept(a)
}

// accept makes of an answer, its body read, the outcome of the call. An error
// means that the peer makes no sense.
func (k *call) accept(a *answer) (err error) {
	if a.body == 0 {
		k.body = k.body[:0]
	}
	k.more, k.err, k.remote = a.flags&flagMore != 0, nil, false
	if a.errno != errnoNone {
		k.remote = true
		k.err, err = decodeError(a.errno, k.body)
		return err
	}
	if k.in == nil {
		return nil
	}
	if a.body == 0 {
		return fmt.Errorf("nothing answers a read of %d bytes", len(k.in))
	}
	return k.decodeInfos()
}

func (k *call) decodeInfos() (err error) {
	left := k.info
	b := k.body
	for ; len(b) >= runSize; b = b[runSize:] {
		if left, err = decodeRun(b, left); err != nil {
			return err
		}
	}
	if len(b) > 0 || len(left) > 0 {
		return fmt.Errorf("infos of %d bytes leave %d pages out", len(k.body), len(left))
	}
	return nil
}
