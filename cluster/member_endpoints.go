package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// endpointsRecord is the file endpoints.json in a member's directory: where the
// voters were when the node last ran. A node without a member finds the cluster by it.
type endpointsRecord struct {
	Format    int      `json:"format"`
	Cluster   ID       `json:"cluster"`
	Endpoints []string `json:"endpoints"`
}

func endpointsPath(dir string) string { return filepath.Join(dir, "endpoints.json") }

// KnownEndpoints returns where the cluster's voters were reached when the node of a
// member's directory last ran, each HOST:PORT; none if it never did.
func KnownEndpoints(dir string, cluster ID) ([]string, error) {
	path := endpointsPath(dir)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r endpointsRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("file %s: %w: %v", path, ErrCorrupt, err)
	}
	switch {
	case r.Format > dirFormat:
		return nil, fmt.Errorf("file %s: %w: format %d, this program knows up to %d: it is too old", path, ErrFormat, r.Format, dirFormat)
	case r.Format < 1:
		return nil, fmt.Errorf("file %s: %w: format %d", path, ErrCorrupt, r.Format)
	case r.Cluster != cluster:
		return nil, fmt.Errorf("file %s belongs to %w: %s, not %s", path, ErrOtherCluster, r.Cluster, cluster)
	}
	return r.Endpoints, nil
}

// KeepEndpoints writes down where the cluster's voters are reached, durably, unless it
// stands there already. The directory is made if it is not there.
func KeepEndpoints(dir string, cluster ID, endpoints []string) error {
	if have, err := KnownEndpoints(dir, cluster); err == nil && slices.Equal(have, endpoints) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return writeJSON(endpointsPath(dir), endpointsRecord{Format: dirFormat, Cluster: cluster, Endpoints: endpoints})
}
