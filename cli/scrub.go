package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"torus/cluster"
	"torus/store"
)

type scrubCmd struct {
	Volumes []volumeName   `arg:"" optional:"" name:"volume" help:"Volumes to verify; all if none is named."`
	NoWait  bool           `help:"Only ask for it: \"torus volume show\" says what was found."`
	Every   *time.Duration `placeholder:"DURATION" help:"Verify nothing now, but everything once in that time, such as 720h, when clients leave time for it; 0: only when asked."`
}

// scrubView is a scrub as it is printed.
type scrubView struct {
	Volume  string    `json:"volume"`
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended"`   // zero: not yet
	Done    int64     `json:"done"`    // bytes gone through
	Total   int64     `json:"total"`   // of so many
	Bytes   int64     `json:"bytes"`   // read, of all copies
	Corrupt int64     `json:"corrupt"` // pages that failed their checksum
	Unlike  int64     `json:"unlike"`  // pages that a copy lacked
	Lost    int64     `json:"lost"`    // pages of which no copy is whole
}

func newScrubView(volume string, s cluster.Scrub) *scrubView {
	return &scrubView{volume, s.Began, s.Ended, s.Done, s.Total, s.Bytes, s.Corrupt, s.Unlike, s.Lost}
}

// errLost is that a scrub found pages that are gone.
var errLost = errors.New("no copy is whole")

// Run asks for scrubs and waits for them.
func (c *scrubCmd) Run(a *app) error {
	return a.withRecords(func(ctx context.Context, r records) error {
		if c.Every != nil {
			return c.setEvery(ctx, a, r)
		}
		names := c.Volumes
		if len(names) == 0 {
			vols, err := r.Volumes(ctx)
			if err != nil {
				return err
			}
			for _, v := range vols {
				names = append(names, volumeName(v.Name))
			}
		}
		asked := map[store.VolumeID]asking{}
		for _, name := range names {
			v, n, err := r.AskScrub(ctx, string(name))
			if err != nil {
				return noSuchVolume(err)
			}
			asked[v.ID] = asking{string(name), n}
		}
		if c.NoWait {
			return a.print(names, func(w io.Writer) {
				fmt.Fprintf(w, "Asked to verify %s.\n", plural(len(names), "volume", "volumes"))
			})
		}
		views, err := a.awaitScrubs(ctx, r, asked)
		if err != nil {
			return err
		}
		if err := a.print(views, func(w io.Writer) { writeScrubs(w, views) }); err != nil {
			return err
		}
		for _, v := range views {
			if v.Lost > 0 {
				err = errors.Join(err, fmt.Errorf("volume %s: %s: %w: restore them from a backup", v.Volume, plural(int(v.Lost), "page", "pages"), errLost))
			}
		}
		return err
	})
}

func (c *scrubCmd) setEvery(ctx context.Context, a *app, r records) error {
	if len(c.Volumes) > 0 {
		return badUsage("--every is for all volumes: name none with it")
	}
	if err := r.SetScrubEvery(ctx, *c.Every); err != nil {
		return err
	}
	return a.print(map[string]any{"everySeconds": int64(c.Every.Seconds())}, func(w io.Writer) {
		if *c.Every == 0 {
			fmt.Fprintln(w, "Volumes are verified when asked only.")
			return
		}
		fmt.Fprintf(w, "Every volume is verified once in %v.\n", *c.Every)
	})
}

// asking is what a scrub of a volume has to answer.
type asking struct {
	volume string
	asked  uint64
}

// awaitScrubs waits until all that was asked for has been answered, and tells people
// how far it is.
func (a *app) awaitScrubs(ctx context.Context, r records, asked map[store.VolumeID]asking) ([]*scrubView, error) {
	p := a.progress("verifying")
	defer p.end()
	ended, views := map[store.VolumeID]bool{}, []*scrubView{}
	for u, err := range r.WatchScrubs(ctx) {
		if err != nil {
			return nil, err
		}
		for id, s := range u.Put {
			w, ours := asked[id]
			switch {
			case !ours || ended[id]:
			case s.Answers(w.asked):
				ended[id] = true
				views = append(views, newScrubView(w.volume, s))
			case s.Answered >= w.asked && s.Total > 0:
				p.at(fmt.Sprintf("volume %s, %s of it done", w.volume, percent(float64(s.Done)/float64(s.Total))))
			}
		}
		for id, w := range asked {
			_, put := u.Put[id]
			if !ended[id] && (slices.Contains(u.Gone, id) || u.Reset && !put) {
				return nil, fmt.Errorf("volume %s: %w: it was deleted meanwhile", w.volume, cluster.ErrNotFound)
			}
		}
		if len(ended) == len(asked) {
			break
		}
	}
	return views, nil
}

func writeScrubs(w io.Writer, views []*scrubView) {
	rows := [][]string{{"VOLUME", "READ", "CORRUPT", "LACKING", "LOST", "TOOK"}}
	for _, v := range views {
		rows = append(rows, []string{v.Volume, formatSize(v.Bytes), fmt.Sprint(v.Corrupt), fmt.Sprint(v.Unlike), fmt.Sprint(v.Lost),
			v.Ended.Sub(v.Began).Round(time.Millisecond).String()})
	}
	writeTable(w, rows)
}

// describe says in a few words what a scrub found.
func (v *scrubView) describe() string {
	switch {
	case v.Began.IsZero():
		return "asked for"
	case v.Ended.IsZero():
		return fmt.Sprintf("since %s, %s done", v.Began.UTC().Format(time.RFC3339), percent(float64(v.Done)/float64(max(v.Total, 1))))
	}
	found := "all whole and alike"
	if v.Corrupt+v.Unlike > 0 {
		found = fmt.Sprintf("%d corrupt, %d lacking on some copy, rewritten from another", v.Corrupt, v.Unlike)
	}
	if v.Lost > 0 {
		found += fmt.Sprintf("; %d lost on all", v.Lost)
	}
	return fmt.Sprintf("%s: %s", v.Ended.UTC().Format(time.RFC3339), found)
}
