package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// print writes v as JSON, or what table writes for people.
func (a *app) print(v any, table func(w io.Writer)) error { return a.printTo(a.stdout, v, table) }

func (a *app) printTo(w io.Writer, v any, table func(w io.Writer)) error {
	if !a.json {
		table(w)
		return nil
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeTable writes rows in columns; the first row is the head.
func writeTable(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush() // its errors are those of w, where nothing can be done about them
}

// writeFields writes names and values, one pair a line, values aligned. A name
// "" goes on with the field before; without a value a field is left out.
func writeFields(w io.Writer, indent string, fields [][2]string) {
	widest := 0
	for _, f := range fields {
		if f[1] != "" {
			widest = max(widest, len(f[0]))
		}
	}
	for _, f := range fields {
		if f[1] != "" {
			fmt.Fprintf(w, "%s%-*s  %s\n", indent, widest, f[0], f[1])
		}
	}
}

// plural returns "1 copy" or "2 copies".
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
