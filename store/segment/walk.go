package segment

import (
	"errors"
	"fmt"
	"io"

	"torus/store"
)

// walkWindow is how much of a segment a walk reads at a time.
const walkWindow = 1 << 20

// A walk goes through the batches of a segment, header by header.
type walk struct {
	g      *seg
	blocks uint32 // of the segment's file
	block  uint32 // of the next header
	chain  uint32 // checksum of the header before it

	window []byte
	at     uint32 // first block in the window
	have   uint32 // blocks in it
	recs   []record
}

func newWalk(g *seg, blocks, block, chain uint32) *walk {
	return &walk{g: g, blocks: blocks, block: block, chain: chain}
}

// read returns n blocks from block on. They are the walk's until the next read.
func (w *walk) read(block, n uint32) ([]byte, error) {
	if block < w.at || block+n > w.at+w.have {
		size := min(max(n, walkWindow/blockSize), w.blocks-block)
		if n > size {
			return nil, fmt.Errorf("%w: %d blocks at %d of %d", store.ErrCorrupt, n, block, w.blocks)
		}
		if uint32(len(w.window)) < size*blockSize {
			w.window = alignedBuffer(int(size) * blockSize)
		}
		w.have = 0
		err := w.g.f.readAt(w.window[:size*blockSize], int64(block)*blockSize, false)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: segment %v is cut: %v", store.ErrCorrupt, w.g.num, err)
		}
		if err != nil {
			return nil, err
		}
		w.at, w.have = block, size
	}
	from := (block - w.at) * blockSize
	return w.window[from : from+n*blockSize], nil
}

// A walked is one batch as a walk found it.
type walked struct {
	batchHeader
	recs []record // the walk's until next is called again
}

// firstPage is the block of the batch's first page.
func (b *walked) firstPage() uint32 { return b.block + b.headerBlocks() }

// next returns the next batch. errBlank: no batch of this use stands there, or
// one that does not follow the batch before it. ErrCorrupt: a batch of this use
// stands there and its header is damaged.
func (w *walk) next() (walked, error) {
	var b walked
	if w.block >= w.blocks {
		return b, errBlank
	}
	p, err := w.read(w.block, 1)
	if err != nil {
		return b, err
	}
	h, ok := decodeBatchFixed(p, w.g.nonce, w.block, w.blocks)
	if !ok || h.prev != w.chain {
		return b, errBlank
	}
	if p, err = w.read(w.block, h.headerBlocks()); err != nil {
		return b, err
	}
	if w.recs, err = h.decodeRecords(p, w.recs[:0]); err != nil {
		return b, err
	}
	w.block += h.blocks()
	w.chain = h.sum
	return walked{h, w.recs}, nil
}

// intact reports whether every page of b is as its record says.
func (w *walk) intact(b *walked) (bool, error) {
	block := b.firstPage()
	for i := range b.recs {
		for _, crc := range b.recs[i].crcs {
			p, err := w.read(block, 1)
			if err != nil {
				return false, err
			}
			if checksum(p) != crc {
				return false, nil
			}
			block++
		}
	}
	return true, nil
}

// syncedBehind looks, behind the end of the chain, for a batch of this use,
// and returns the highest position that any names as synced: what the log had
// acknowledged as durable, however it ends now.
func (w *walk) syncedBehind(from uint32) (position, error) {
	var highest position
	for block := from; block < w.blocks; block++ {
		p, err := w.read(block, 1)
		if err != nil {
			return 0, err
		}
		h, ok := decodeBatchFixed(p, w.g.nonce, block, w.blocks)
		if !ok {
			continue
		}
		if p, err = w.read(block, h.headerBlocks()); err != nil {
			return 0, err
		}
		if _, err := h.decodeRecords(p, nil); err == nil {
			highest = max(highest, h.synced)
		}
	}
	return highest, nil
}
