package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	askTimeout = 2 * time.Second
	maxAnswer  = 1 << 20 // bytes of an API's answer that are read
)

// Ask asks the API of a node, HOST:PORT, what it says of itself.
func Ask(ctx context.Context, addr string) (About, error) {
	var a About
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v1/endpoints", nil)
	if err != nil {
		return a, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s answered %s: it is not the API of a Torus node", addr, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&a); err != nil || len(a.Etcd) == 0 {
		return a, fmt.Errorf("%s: its answer is not that of a Torus node: %v", addr, err)
	}
	return a, nil
}
