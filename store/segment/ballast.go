package segment

import (
	"fmt"
	"sync"

	"torus/store"
)

// A ballast is a file that holds disk space for Badger and etcd, either of
// which would take the process down on a full disk (FACTS: SIGBUS, Fatal).
// While the disk has room it is whole; when others fill the disk it gives way
// step by step, and no new segment is made until it is whole again.
type ballast struct {
	d    disk
	f    file
	size int64 // when whole

	mu   sync.Mutex
	have int64
}

const ballastName = "reserve"

func openBallast(d disk, size int64) (*ballast, error) {
	b := &ballast{d: d, size: size / blockSize * blockSize}
	var err error
	if b.f, err = d.open(ballastName); err != nil {
		return nil, err
	}
	if b.have, err = b.f.allocated(); err != nil {
		b.f.close()
		return nil, err
	}
	if b.have > b.size {
		if err := b.f.truncate(b.size); err != nil {
			b.f.close()
			return nil, err
		}
		b.have = b.size
	}
	return b, nil
}

// headroom is what stays free beside a whole ballast, so that small writes of
// others don't make it give way at once.
func (b *ballast) headroom() int64 { return b.size / 4 }

// adjust makes the ballast give way or grow back, by what is free.
func (b *ballast) adjust() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	free, err := b.d.free()
	if err != nil {
		return err
	}
	want := ballastTarget(b.have, b.size, free, b.headroom())
	switch {
	case want < b.have:
		err = b.f.truncate(want)
	case want > b.have:
		err = b.f.allocate(want)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	b.have = want
	return nil
}

// ballastTarget decides the size: down so far that headroom is free, up only
// when twice the headroom stays free, so that it doesn't swing.
func ballastTarget(have, size, free, headroom int64) int64 {
	switch {
	case free < headroom:
		return max(have-(headroom-free), 0) / blockSize * blockSize
	case have < size && free > 2*headroom:
		return min(have+free-2*headroom, size) / blockSize * blockSize
	}
	return have
}

// admit says whether n bytes may be taken from the disk for pages.
func (b *ballast) admit(n int64) error {
	if err := b.adjust(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	free, err := b.d.free()
	if err != nil {
		return err
	}
	if b.have < b.size || free < n+b.headroom() {
		return fmt.Errorf("%w: %d bytes free and %d of %d held in reserve, a segment needs %d",
			store.ErrNoSpace, free, b.have, b.size, n)
	}
	return nil
}

func (b *ballast) close() error { return b.f.close() }
