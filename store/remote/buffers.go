package remote

import (
	"math/bits"
	"sync"
	"unsafe"

	"torus/store"
)

const (
	minClass = 12 // 4 KiB
	maxClass = 25 // store.MaxIO
)

// buffers keeps payloads for reuse: powers of two, each beginning on a page
// boundary, so that a store can hand them to O_DIRECT. What is in use is
// bounded by the connections' limits, what lies idle by maxIdle.
type buffers struct {
	maxIdle int64 // bytes

	mu   sync.Mutex // guards what follows; innermost lock
	idle int64      // bytes in free
	free [maxClass + 1][][]byte
}

func bufferClass(n int) int { return max(minClass, bits.Len(uint(n-1))) }

// get returns n bytes, 1 <= n <= store.MaxIO, with old ones in them.
func (p *buffers) get(n int) []byte {
	class := bufferClass(n)
	p.mu.Lock()
	if l := len(p.free[class]); l > 0 {
		b := p.free[class][l-1]
		p.free[class][l-1] = nil
		p.free[class] = p.free[class][:l-1]
		p.idle -= int64(cap(b))
		p.mu.Unlock()
		return b[:n]
	}
	p.mu.Unlock()
	return aligned(1 << class)[:n]
}

// put takes back what get returned; nobody may use it any more.
func (p *buffers) put(b []byte) {
	b = b[:cap(b)]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle+int64(len(b)) <= p.maxIdle {
		p.idle += int64(len(b))
		p.free[bufferClass(len(b))] = append(p.free[bufferClass(len(b))], b)
	}
}

// aligned allocates bytes that begin on a page boundary, as Go's allocator
// happens to do for powers of two.
func aligned(size int) []byte {
	b := make([]byte, size)
	if skew(b) == 0 {
		return b
	}
	b = make([]byte, size+store.PageSize)
	skip := store.PageSize - skew(b)
	return b[skip : skip+size : skip+size]
}

func skew(b []byte) int { return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % store.PageSize) }
