package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

type versionCmd struct{}

type versionView struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the sources; "" if unknown
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Run prints the version.
func (c *versionCmd) Run(a *app) error {
	v := versionView{Version: version(), Revision: revision(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	return a.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "torus %s, %s, %s\n", v.Version, v.Go, v.Platform)
	})
}

// version is that of the module, as the build recorded it.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}

func revision() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range b.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
