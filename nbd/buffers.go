package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

const (
	pageSize       = 4096
	minBufferClass = 12 // 4 KiB
	maxBufferClass = 26 // 64 MiB: 32 MiB at an unaligned offset
)

// bufferPool keeps payload buffers for reuse: powers of two from 4 KiB, each
// beginning on a page boundary, since they go to O_DIRECT as they are. What is
// in use is bounded by the limiters, what lies idle by maxIdle.
//
// sync.Pool was not taken: it forgets at each collection, and allocating a
// large buffer means zeroing it.
type bufferPool struct {
	maxIdle int64 // bytes

	mu   sync.Mutex // guards what follows; innermost lock
	idle int64      // bytes in free
	free [maxBufferClass + 1][][]byte
}

// bufferClass is the class that holds n bytes, 0 for none.
func bufferClass(n int) int {
	if n == 0 {
		return 0
	}
	return max(minBufferClass, bits.Len(uint(n-1)))
}

// bufferCharge is the memory that a buffer for n bytes takes.
func bufferCharge(n int) int64 {
	if n == 0 {
		return 0
	}
	return 1 << bufferClass(n)
}

// get returns a buffer of length n, 1 <= n <= 64 MiB, with old bytes in it.
func (p *bufferPool) get(n int) []byte {
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
	return alignedBuffer(1 << class)[:n]
}

// put takes back a buffer that get returned. Nobody may use it any more.
func (p *bufferPool) put(b []byte) {
	b = b[:cap(b)]
	class := bufferClass(len(b))
	p.mu.Lock()
	if p.idle+int64(len(b)) <= p.maxIdle {
		p.idle += int64(len(b))
		p.free[class] = append(p.free[class], b)
	}
	p.mu.Unlock()
}

// drop gives all idle buffers to the garbage collector.
func (p *bufferPool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = 0
	for i := range p.free {
		p.free[i] = nil
	}
}

// alignedBuffer allocates size bytes that begin on a page boundary. Go's
// allocator happens to give that for powers of two; should it not, a page more
// is allocated.
func alignedBuffer(size int) []byte {
	b := make([]byte, size)
	if misaligned(b) == 0 {
		return b
	}
	b = make([]byte, size+pageSize)
	skip := pageSize - misaligned(b)
	return b[skip : skip+size : skip+size]
}

func misaligned(b []byte) int {
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % pageSize)
}
