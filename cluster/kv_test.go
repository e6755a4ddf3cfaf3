package cluster

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// kvUnderTest is a KV with what the suite needs beside it.
type kvUnderTest struct {
	KV
	compact  func(t *testing.T)    // forgets all revisions before the newest
	pass     func(d time.Duration) // lets time pass for leases
	shortTTL time.Duration         // the shortest lease
}

// testKV holds an implementation to the text of KV. in runs each test.
func testKV(t *testing.T, in func(*testing.T, func(*testing.T)), open func(t *testing.T) kvUnderTest) {
	for name, test := range map[string]func(*testing.T, kvUnderTest){
		"GetAndRange": testKVGet, "Commit": testKVCommit, "PrefixCond": testKVPrefixCond,
		"DeletePrefix": testKVDeletePrefix, "BadTxn": testKVBadTxn,
		"Watch": testKVWatch, "WatchNow": testKVWatchNow, "Compacted": testKVCompacted,
		"LeaseExpires": testKVLeaseExpires, "LeaseKept": testKVLeaseKept, "Revoke": testKVRevoke,
		"NoLease": testKVNoLease, "LeaseChanges": testKVLeaseChanges, "ContextEnds": testKVContextEnds, "Close": testKVClose,
	} {
		t.Run(name, func(t *testing.T) { in(t, func(t *testing.T) { test(t, open(t)) }) })
	}
}

// inTheOpen runs a test as it is.
func inTheOpen(t *testing.T, f func(*testing.T)) { f(t) }

func TestMemory(t *testing.T) {
	testKV(t, inTheOpen, func(t *testing.T) kvUnderTest {
		now := time.Duration(0)
		m := NewMemory(func() time.Duration { return now })
		t.Cleanup(func() { m.Close() })
		return kvUnderTest{KV: m, shortTTL: time.Second,
			compact: func(*testing.T) { m.Compact() },
			pass:    func(d time.Duration) { now += d; m.Expire() }}
	})
}

func TestMemoryInRealTime(t *testing.T) {
	testKV(t, synctest.Test, func(t *testing.T) kvUnderTest {
		m := NewMemory(nil)
		t.Cleanup(func() { m.Close() })
		return kvUnderTest{KV: m, shortTTL: 50 * time.Millisecond,
			compact: func(*testing.T) { m.Compact() }, pass: time.Sleep}
	})
}

func put(key, value string) Op { return Op{Kind: OpPut, Key: key, Value: []byte(value)} }

func mustCommit(t *testing.T, kv KV, ops ...Op) Revision {
	t.Helper()
	out, err := kv.Commit(t.Context(), Txn{Then: ops})
	if err != nil || !out.Held {
		t.Fatalf("commit %v: %+v, %v", ops, out, err)
	}
	return out.Revision
}

func wantPair(t *testing.T, kv KV, key string, at Revision, want string) Pair {
	t.Helper()
	p, rev, err := kv.Get(t.Context(), key, at)
	if err != nil || at != 0 && rev != at || rev < p.Mod {
		t.Fatalf("get %s at %d: at %d, %v", key, at, rev, err)
	}
	if got := string(p.Value); got != want || p.Key != key || (p.Mod == 0) != (want == "") {
		t.Fatalf("get %s at %d: %q at %d, want %q", key, at, got, p.Mod, want)
	}
	return p
}

func testKVGet(t *testing.T, kv kvUnderTest) {
	r1 := mustCommit(t, kv, put("a/1", "x"), put("b", "other"))
	r2 := mustCommit(t, kv, put("a/2", "y"), put("a/1", "x2"))
	if r2 != r1+1 {
		t.Errorf("revisions %d, %d", r1, r2)
	}
	if p := wantPair(t, kv, "a/1", 0, "x2"); p.Mod != r2 {
		t.Errorf("changed at %d, want %d", p.Mod, r2)
	}
	wantPair(t, kv, "a/1", r1, "x")
	wantPair(t, kv, "a/2", r1, "")
	wantPair(t, kv, "none", 0, "")
	r3 := mustCommit(t, kv, Op{Kind: OpDelete, Key: "a/1"}, Op{Kind: OpDelete, Key: "none"})
	wantPair(t, kv, "a/1", 0, "")
	wantPair(t, kv, "a/1", r2, "x2")
	pairs, rev, err := kv.Range(t.Context(), "a/", r2)
	if err != nil || rev != r2 || len(pairs) != 2 || pairs[0].Key != "a/1" || string(pairs[1].Value) != "y" {
		t.Errorf("range at %d: %v at %d, %v", r2, pairs, rev, err)
	}
	pairs, rev, err = kv.Range(t.Context(), "a/", 0)
	if err != nil || rev != r3 || len(pairs) != 1 || pairs[0].Key != "a/2" {
		t.Errorf("range: %v at %d, %v", pairs, rev, err)
	}
}

func testKVCommit(t *testing.T, kv kvUnderTest) {
	r1 := mustCommit(t, kv, put("a", "1"))
	for _, c := range []struct {
		conds []Cond
		held  bool
	}{
		{[]Cond{{Key: "a", Mod: 0}}, false},
		{[]Cond{{Key: "a", Mod: r1 + 1}}, false},
		{[]Cond{{Key: "a", Mod: r1}, {Key: "b", Mod: r1}}, false},
		{[]Cond{{Key: "a", Mod: r1}, {Key: "b", Mod: 0}}, true},
	} {
		before := wantPair(t, kv, "a", 0, "1")
		out, err := kv.Commit(t.Context(), Txn{If: c.conds, Then: []Op{put("a", "2"), put("c", "3")}})
		if err != nil || out.Held != c.held {
			t.Fatalf("%v: %+v, %v", c.conds, out, err)
		}
		if !c.held {
			if p := wantPair(t, kv, "a", 0, "1"); p.Mod != before.Mod {
				t.Fatalf("%v: changed at %d", c.conds, p.Mod)
			}
			wantPair(t, kv, "c", 0, "")
		}
	}
	wantPair(t, kv, "a", 0, "2")
	wantPair(t, kv, "c", 0, "3")
}

func testKVPrefixCond(t *testing.T, kv kvUnderTest) {
	r1 := mustCommit(t, kv, put("p/1", "x"), put("q", "x"))
	r2 := mustCommit(t, kv, put("p/2", "x"))
	try := func(prefix string, mod Revision) bool {
		t.Helper()
		out, err := kv.Commit(t.Context(), Txn{If: []Cond{{Key: prefix, Mod: mod, Prefix: true}}, Then: []Op{put("done", "x")}})
		if err != nil {
			t.Fatal(err)
		}
		return out.Held
	}
	if try("p/", r1) {
		t.Error("a key was made after the revision")
	}
	if !try("p/", r2) || !try("empty/", 0) || !try("q", r1) {
		t.Error("nothing changed after the revision")
	}
	mustCommit(t, kv, put("p/1", "y"))
	if try("p/", r2) {
		t.Error("a key was changed after the revision")
	}
}

func testKVDeletePrefix(t *testing.T, kv kvUnderTest) {
	mustCommit(t, kv, put("d/1", "x"), put("d/2", "x"), put("e", "x"))
	mustCommit(t, kv, Op{Kind: OpDeletePrefix, Key: "d/"})
	wantPair(t, kv, "d/1", 0, "")
	wantPair(t, kv, "d/2", 0, "")
	wantPair(t, kv, "e", 0, "x")
}

func testKVBadTxn(t *testing.T, kv kvUnderTest) {
	many := make([]Op, MaxTxnOps+1)
	for i := range many {
		many[i] = put(fmt.Sprint("k", i), "x")
	}
	for name, txn := range map[string]Txn{
		"no operation": {}, "a key twice": {Then: []Op{put("a", "1"), put("a", "2")}},
		"no key": {Then: []Op{put("", "x")}}, "no kind": {Then: []Op{{Key: "a"}}}, "too many": {Then: many},
	} {
		if _, err := kv.Commit(t.Context(), txn); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustCommit(t, kv, many[:MaxTxnOps]...)
}

// follow runs a watch and returns what it yields.
func follow(t *testing.T, w iter.Seq2[Batch, error]) func() (Batch, error) {
	t.Helper()
	type item struct {
		b   Batch
		err error
	}
	items := make(chan item)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for b, err := range w {
			select {
			case items <- item{b, err}:
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop) })
	return func() (Batch, error) {
		t.Helper()
		select {
		case i := <-items:
			return i.b, i.err
		case <-ended:
			t.Fatal("the watch ended without an error")
		case <-time.After(10 * time.Second):
			t.Fatal("the watch is silent")
		}
		panic("not reached")
	}
}

func events(b Batch) string {
	var out []string
	for _, e := range b.Events {
		if e.Deleted {
			out = append(out, "-"+e.Key)
		} else {
			out = append(out, e.Key+"="+string(e.Value))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func testKVWatch(t *testing.T, kv kvUnderTest) {
	mustCommit(t, kv, put("w/0", "before"))
	r1 := mustCommit(t, kv, put("w/1", "a"), put("w/2", "b"), put("x", "c"))
	mustCommit(t, kv, put("x", "d"))
	r3 := mustCommit(t, kv, Op{Kind: OpDelete, Key: "w/1"})
	next := follow(t, kv.Watch(t.Context(), "w/", r1))
	var got []string
	for last := Revision(0); last < r3; {
		b, err := next()
		if err != nil {
			t.Fatal(err)
		}
		byRev := map[Revision]*Batch{}
		var order []Revision
		for _, e := range b.Events { // a batch may have several revisions
			if byRev[e.Mod] == nil {
				byRev[e.Mod] = &Batch{}
				order = append(order, e.Mod)
			}
			byRev[e.Mod].Events = append(byRev[e.Mod].Events, e)
		}
		for _, rev := range order {
			got = append(got, events(*byRev[rev]))
		}
		last = b.Revision
	}
	if want := []string{"w/1=a w/2=b", "-w/1"}; !slices.Equal(got, want) {
		t.Errorf("watched %q, want %q", got, want)
	}
	r4 := mustCommit(t, kv, put("w/9", "later"))
	if b, err := next(); err != nil || events(b) != "w/9=later" || b.Revision != r4 {
		t.Errorf("%v, %v", b, err)
	}
}

func testKVWatchNow(t *testing.T, kv kvUnderTest) {
	r := mustCommit(t, kv, put("w/1", "before"))
	next := follow(t, kv.Watch(t.Context(), "w/", r+1))
	mustCommit(t, kv, put("w/1", "after"))
	if b, err := next(); err != nil || events(b) != "w/1=after" {
		t.Errorf("%v, %v", b, err)
	}
}

func testKVCompacted(t *testing.T, kv kvUnderTest) {
	r1 := mustCommit(t, kv, put("c", "1"))
	mustCommit(t, kv, put("c", "2"))
	r3 := mustCommit(t, kv, put("c", "3"))
	kv.compact(t)
	if _, _, err := kv.Get(t.Context(), "c", r1); !errors.Is(err, ErrCompacted) {
		t.Errorf("get: %v", err)
	}
	if _, _, err := kv.Range(t.Context(), "c", r1); !errors.Is(err, ErrCompacted) {
		t.Errorf("range: %v", err)
	}
	if _, err := follow(t, kv.Watch(t.Context(), "c", r1))(); !errors.Is(err, ErrCompacted) {
		t.Errorf("watch: %v", err)
	}
	wantPair(t, kv, "c", 0, "3")
	wantPair(t, kv, "c", r3, "3")
}

func testKVLeaseExpires(t *testing.T, kv kvUnderTest) {
	l, err := kv.Grant(t.Context(), kv.shortTTL)
	if err != nil || l.TTL < kv.shortTTL || l.ID == 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	r := mustCommit(t, kv, Op{Kind: OpPut, Key: "l/1", Value: []byte("x"), Lease: l.ID}, put("l/2", "y"))
	if p := wantPair(t, kv, "l/1", 0, "x"); p.Lease != l.ID {
		t.Errorf("under lease %d, want %d", p.Lease, l.ID)
	}
	next := follow(t, kv.Watch(t.Context(), "l/", r+1))
	kv.pass(l.TTL)
	if b, err := next(); err != nil || events(b) != "-l/1" {
		t.Fatalf("%v, %v", b, err)
	}
	wantPair(t, kv, "l/1", 0, "")
	wantPair(t, kv, "l/2", 0, "y")
	if err := kv.KeepAlive(t.Context(), l.ID); !errors.Is(err, ErrNoLease) {
		t.Errorf("keep alive: %v", err)
	}
}

func testKVLeaseKept(t *testing.T, kv kvUnderTest) {
	l, err := kv.Grant(t.Context(), kv.shortTTL)
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, kv, Op{Kind: OpPut, Key: "k", Value: []byte("x"), Lease: l.ID})
	for range 6 {
		kv.pass(l.TTL / 4)
		if err := kv.KeepAlive(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
	}
	wantPair(t, kv, "k", 0, "x")
}

func testKVRevoke(t *testing.T, kv kvUnderTest) {
	l, err := kv.Grant(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, kv, Op{Kind: OpPut, Key: "k", Value: []byte("x"), Lease: l.ID})
	for range 2 {
		if err := kv.Revoke(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		wantPair(t, kv, "k", 0, "")
	}
}

func testKVNoLease(t *testing.T, kv kvUnderTest) {
	_, err := kv.Commit(t.Context(), Txn{Then: []Op{{Kind: OpPut, Key: "k", Value: []byte("x"), Lease: 4711}}})
	if !errors.Is(err, ErrNoLease) {
		t.Errorf("commit: %v", err)
	}
	wantPair(t, kv, "k", 0, "")
	if _, err := kv.Grant(t.Context(), 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("grant of 0: %v", err)
	}
}

// A key that is put again under another lease, or none, leaves the first.
func testKVLeaseChanges(t *testing.T, kv kvUnderTest) {
	first, err := kv.Grant(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	second, err := kv.Grant(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, kv, Op{Kind: OpPut, Key: "k", Value: []byte("1"), Lease: first.ID}, Op{Kind: OpPut, Key: "n", Value: []byte("1"), Lease: first.ID})
	mustCommit(t, kv, Op{Kind: OpPut, Key: "k", Value: []byte("2"), Lease: second.ID}, put("n", "2"))
	if err := kv.Revoke(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	wantPair(t, kv, "k", 0, "2")
	wantPair(t, kv, "n", 0, "2")
}

func testKVContextEnds(t *testing.T, kv kvUnderTest) {
	ctx, cancel := context.WithCancel(t.Context())
	next := follow(t, kv.Watch(ctx, "w/", 0))
	cancel()
	if _, err := next(); !errors.Is(err, context.Canceled) {
		t.Errorf("watch: %v", err)
	}
	if _, _, err := kv.Get(ctx, "k", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if _, err := kv.Commit(ctx, Txn{Then: []Op{put("k", "x")}}); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
}

func testKVClose(t *testing.T, kv kvUnderTest) {
	next := follow(t, kv.Watch(t.Context(), "w/", 0))
	if err := kv.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := next(); !errors.Is(err, ErrClosed) {
		t.Errorf("watch: %v", err)
	}
	if _, _, err := kv.Get(t.Context(), "k", 0); !errors.Is(err, ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := kv.Commit(t.Context(), Txn{Then: []Op{put("k", "x")}}); !errors.Is(err, ErrClosed) || errors.Is(err, ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
}
