// Package storetest holds an implementation of package store to the text of
// its contract: one small test a behaviour, and random operations beside a
// model. A new implementation is tested by handing Run the machines it lives on.
//
// What the contract leaves open is left open here: whether extents of a kind
// and version are joined, whether a chain's unknown layer is noticed behind a
// page that needn't be looked for there, and how much a power cut takes.
package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"torus/store"
)

// A Machine is where a store lives; it outlives the store's process. Its
// methods are called one at a time, and fail the test if they can't do it.
type Machine interface {
	// Open returns the store on the machine: at first, and again after Close,
	// Kill or PowerCut.
	Open(t *testing.T) store.Store
	// Kill ends the store's process without warning. What was acknowledged
	// stays, and the incarnation.
	Kill(t *testing.T)
	// PowerCut ends the process too. What was not synced may be gone; the
	// store comes back with another incarnation.
	PowerCut(t *testing.T)
}

// Run tests a store. newMachine is called for each subtest and returns an
// empty machine; it cleans up through t.
func Run(t *testing.T, newMachine func(t *testing.T) Machine) {
	for _, group := range []struct {
		name       string
		behaviours []behaviour
		rounds     int // each on a new machine
	}{
		{"Write", writeBehaviours, 1},
		{"Zero", zeroBehaviours, 1},
		{"Read", readBehaviours, 1},
		{"Fence", fenceBehaviours, 1},
		{"Layer", layerBehaviours, 1},
		{"Extents", extentBehaviours, 1},
		{"Adopt", adoptBehaviours, 1},
		{"Marks", markBehaviours, 1},
		// A power cut may leave everything as it is, by chance, and so hide
		// what is wrong.
		{"Durable", durableBehaviours, 4},
		{"Invalid", invalidBehaviours, 1},
		{"Life", lifeBehaviours, 1},
		{"Concurrent", concurrentBehaviours, 1},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, b := range group.behaviours {
				t.Run(b.name, func(t *testing.T) {
					for range group.rounds {
						b.test(newFixture(t, newMachine(t)))
					}
				})
			}
		})
	}
	t.Run("Model", func(t *testing.T) { runModel(t, newMachine) })
}

// A behaviour is one thing that the contract says.
type behaviour struct {
	name string
	test func(*fixture)
}

// The layers of a fixture: a chain of three.
const (
	top    store.LayerID = 0xa3
	mid    store.LayerID = 0xa2
	bottom store.LayerID = 0xa1
	// nowhere is never created.
	nowhere store.LayerID = 0xdead
)

const (
	volume store.VolumeID = 0x7001
	first  store.Epoch    = 3 // leaves room for lower ones
	ps                    = store.PageSize
)

// A fixture is a machine with an open store, attached at epoch first, and the
// three layers.
type fixture struct {
	*testing.T
	ctx     context.Context
	machine Machine
	store   store.Store
	store.Replica
}

func newFixture(t *testing.T, m Machine) *fixture {
	f := &fixture{T: t, ctx: t.Context(), machine: m}
	f.open()
	f.ok(f.Create(f.ctx, bottom, 0))
	f.ok(f.Create(f.ctx, mid, bottom))
	f.ok(f.Create(f.ctx, top, mid))
	t.Cleanup(func() { f.store.Close() })
	return f
}

// open opens the store and attaches the volume at the epoch first.
func (f *fixture) open() {
	f.Helper()
	f.store = f.machine.Open(f.T)
	f.Replica = f.attach(first)
}

func (f *fixture) closeAndOpen() {
	f.Helper()
	f.ok(f.store.Close())
	f.open()
}

func (f *fixture) killAndOpen() {
	f.Helper()
	f.machine.Kill(f.T)
	f.open()
}

func (f *fixture) cutAndOpen() {
	f.Helper()
	f.machine.PowerCut(f.T)
	f.open()
}

func (f *fixture) attach(e store.Epoch) store.Replica {
	f.Helper()
	r, err := f.store.Attach(f.ctx, volume, e)
	f.ok(err)
	return r
}

func (f *fixture) stat() store.Stat {
	f.Helper()
	st, err := f.store.Stat(f.ctx)
	f.ok(err)
	return st
}

// ok ends the test unless err is nil.
func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// fails ends the test unless err is want.
func (f *fixture) fails(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("got error %v, want %v", err, want)
	}
}

// v is a version of the epoch that the fixture is attached at.
func v(sequence uint64) store.Version { return store.NewVersion(first, sequence) }

// pattern returns n pages as the write of that version leaves them.
func pattern(page, n int64, version store.Version) []byte {
	return tagged(page, n, version, 0)
}

// tagged returns n pages whose every 8 bytes depend on page, version and tag.
func tagged(page, n int64, version store.Version, tag uint64) []byte {
	p := make([]byte, n*ps)
	for i := range n {
		x := uint64(page+i)*0x9e3779b97f4a7c15 ^ uint64(version)*0xbf58476d1ce4e5b9 ^ tag<<56
		for w := range int64(ps / 8) {
			x = x*6364136223846793005 + 1442695040888963407
			binary.LittleEndian.PutUint64(p[i*ps+w*8:], x)
		}
	}
	return p
}

// write writes n pages of the pattern.
func (f *fixture) write(layer store.LayerID, page, n int64, version store.Version, flags ...store.Flags) {
	f.Helper()
	var all store.Flags
	for _, flag := range flags {
		all |= flag
	}
	f.ok(f.Write(f.ctx, layer, page*ps, pattern(page, n, version), version, all))
}

func (f *fixture) zero(layer store.LayerID, page, n int64, version store.Version) {
	f.Helper()
	f.ok(f.Zero(f.ctx, layer, page*ps, n*ps, version, 0))
}

func (f *fixture) sync() {
	f.Helper()
	f.ok(f.Sync(f.ctx))
}

// What a page may be expected to be.
var absent store.PageInfo

func data(layer store.LayerID, version store.Version) store.PageInfo {
	return store.PageInfo{Layer: layer, Kind: store.Data, Version: version}
}

func hole(layer store.LayerID, version store.Version) store.PageInfo {
	return store.PageInfo{Layer: layer, Kind: store.Hole, Version: version}
}

func chain(layers ...store.LayerID) []store.LayerID { return layers }

// expect reads the pages from page on through the chain and ends the test
// unless they are what is wanted, in info and bytes.
func (f *fixture) expect(layers []store.LayerID, page int64, want ...store.PageInfo) {
	f.Helper()
	p, info := f.read(f.Replica, layers, page, int64(len(want)))
	for i, w := range want {
		n := page + int64(i)
		if info[i] != w {
			f.Fatalf("page %d is %+v, want %+v", n, info[i], w)
		}
		bytesWanted := make([]byte, ps)
		if w.Kind == store.Data {
			bytesWanted = pattern(n, 1, w.Version)
		}
		if !bytes.Equal(p[i*ps:(i+1)*ps], bytesWanted) {
			f.Fatalf("page %d, %+v, has other bytes than were written", n, w)
		}
	}
}

// read returns n pages and what they are. What was in the buffers before is
// garbage, so that a page left alone shows.
func (f *fixture) read(r store.Replica, layers []store.LayerID, page, n int64) ([]byte, []store.PageInfo) {
	f.Helper()
	p := bytes.Repeat([]byte{0xee}, int(n*ps))
	info := make([]store.PageInfo, n)
	for i := range info {
		info[i] = store.PageInfo{Layer: 0xee, Kind: 0xee, Version: 0xee}
	}
	f.ok(r.Read(f.ctx, layers, page*ps, p, info))
	return p, info
}

// extent counts in pages.
func extent(page, n int64, kind store.Kind, version store.Version) store.Extent {
	return store.Extent{Off: page * ps, N: n * ps, Kind: kind, Version: version}
}
