package cli

import (
	"errors"
	"fmt"
	"io"
	"time"

	"torus/node"
	"torus/store"
	"torus/store/segment"
)

type storeCmds struct {
	Check storeCheckCmd `cmd:"" help:"Verify the store of a stopped node: every batch, every page, every count."`
}

type storeCheckCmd struct {
	DataDir string `type:"path" default:"/var/lib/torus" placeholder:"DIR" help:"Where the node keeps its data (${default})."`
}

// checkView is what was found, as it is printed.
type checkView struct {
	Store    string   `json:"store"` // its directory
	OK       bool     `json:"ok"`
	Segments int      `json:"segments"`
	Layers   int      `json:"layers"`
	Pages    int64    `json:"pages"` // that live
	Holes    int64    `json:"holes"`
	Corrupt  int64    `json:"corruptPages"`
	Damaged  int64    `json:"damaged"`  // batches and counts
	Problems []string `json:"problems"` // the first hundred
}

// errUnsound: the check went through, and found something.
var errUnsound = errors.New("the store is damaged")

// Run verifies a store.
func (c *storeCheckCmd) Run(a *app) error {
	if _, err := node.Load(c.DataDir); err != nil {
		return advise(err, node.ErrNoNode, "name the data directory of a node with --data-dir")
	}
	dir := node.StoreDir(c.DataDir)
	r, err := segment.Check(a.ctx, dir, a.percent())
	if err != nil {
		return fmt.Errorf("check %s: %w", dir, advise(err, segment.ErrLocked, "stop the node first"))
	}
	v := checkView{
		Store: dir, OK: r.OK(), Segments: r.Segments, Layers: r.Layers, Pages: r.Pages, Holes: r.Holes,
		Corrupt: r.Corrupt, Damaged: r.Damaged, Problems: append([]string{}, r.Problems...),
	}
	if err := a.print(v, v.write); err != nil {
		return err
	}
	if !v.OK {
		return fmt.Errorf("check %s: %w", dir, errUnsound)
	}
	return nil
}

func (v checkView) write(w io.Writer) {
	fmt.Fprintf(w, "Checked %s: %s in %s, %s, %d holes.\n", plural(int(v.Pages), "page", "pages"), formatSize(v.Pages*store.PageSize),
		plural(v.Segments, "segment", "segments"), plural(v.Layers, "layer", "layers"), v.Holes)
	if v.OK {
		fmt.Fprintln(w, "All is well.")
		return
	}
	fmt.Fprintf(w, "Found %s corrupt, and %s:\n", plural(int(v.Corrupt), "page", "pages"), plural(int(v.Damaged), "other damage", "other damages"))
	for _, p := range v.Problems {
		fmt.Fprintln(w, "  "+p)
	}
	if more := v.Corrupt + v.Damaged - int64(len(v.Problems)); more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}

// percent returns a function that tells a person, each second, how much is done.
func (a *app) percent() func(done, total int64) {
	last := time.Now()
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= progressEvery && total > 0 {
			last = now
			a.note("%d %%: %s of %s", done*100/total, formatSize(done), formatSize(total))
		}
	}
}
