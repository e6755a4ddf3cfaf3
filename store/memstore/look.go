package memstore

import "torus/store"

// Seen is what Disk.Look found.
type Seen struct {
	store.PageInfo               // of the layer looked at; zero where the page is absent
	Data           []byte        // of Kind Data; not to be changed
	Known          bool          // the layer is on the disk
	Stable         store.Version // marks of the layer
	Settled        store.Version
}

// Look shows the page at off (in bytes) of one layer as it is on the disk, or
// with durable as a power cut would leave it that takes all it may. It is for
// tests that compare disks: it needs no open store, no epoch, and counts as no
// request.
func (d *Disk) Look(id store.LayerID, off int64, durable bool) Seen {
	l := d.layer(id)
	if l == nil {
		return Seen{}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	pages, m := l.now, l.marks
	if durable && l.durable != nil {
		pages, m = l.durable, l.durableMarks
	}
	seen := Seen{Known: true, Stable: m.stable, Settled: m.settled}
	c := pages.get(off / store.PageSize)
	if c.kind == store.Absent {
		return seen
	}
	seen.PageInfo = store.PageInfo{Layer: id, Kind: c.kind, Version: c.version}
	if c.kind == store.Data {
		seen.Data = c.data[:]
	}
	return seen
}

// Fenced returns the volumes whose fences are on the disk, in no order. As Look
// it needs no open store.
func (d *Disk) Fenced() []store.Fence { return d.fencesNow() }
