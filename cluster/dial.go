package cluster

import (
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Dial returns a client of the etcd members at the endpoints, each HOST:PORT: a
// KV. It does not wait for a connection: the first call does. Plain connections only.
func Dial(endpoints []string) (*Client, error) {
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("%w: no etcd endpoints", ErrInvalid)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          callTimeout,
		DialKeepAliveTime:    callTimeout,
		DialKeepAliveTimeout: callTimeout,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd at %v: %w", endpoints, err)
	}
	return newClient(client), nil
}

// Endpoints returns where voters are reached, each HOST:PORT, as far as is known.
func (e *Client) Endpoints() []string { return e.client.Endpoints() }
