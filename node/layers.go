package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"torus/store"
)

// Layer is what the API says of a layer that the node has, at /v1/layers.
type Layer struct {
	ID    string `json:"id"`
	Bytes int64  `json:"bytes"` // of live data
}

func (n *Node) serveLayers(w http.ResponseWriter, r *http.Request) {
	layers := []Layer{}
	if n.store != nil {
		for l, err := range n.store.Layers(r.Context()) {
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			layers = append(layers, Layer{ID: l.ID.String(), Bytes: l.Bytes})
		}
	}
	writeJSON(w, http.StatusOK, layers)
}

// maxLayers bounds the answer that AskLayers reads, in bytes.
const maxLayers = 64 << 20

// AskLayers asks the API of a node, HOST:PORT, which layers it has.
func AskLayers(ctx context.Context, addr string) (map[store.LayerID]Layer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v1/layers", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", addr, resp.Status)
	}
	var all []Layer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLayers)).Decode(&all); err != nil {
		return nil, fmt.Errorf("%s: its answer can't be read: %w", addr, err)
	}
	layers := make(map[store.LayerID]Layer, len(all))
	for _, l := range all {
		var id uint64
		if _, err := fmt.Sscanf(l.ID, "%016x", &id); err != nil {
			return nil, fmt.Errorf("%s: its answer names layer %q: %w", addr, l.ID, err)
		}
		layers[store.LayerID(id)] = l
	}
	return layers, nil
}
