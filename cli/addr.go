package cli

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// ipAddr is an IP address; the zero value is none given.
type ipAddr struct{ netip.Addr }

// UnmarshalText refuses names: they mean other machines elsewhere.
func (a *ipAddr) UnmarshalText(b []byte) error {
	if err := a.Addr.UnmarshalText(b); err != nil {
		return fmt.Errorf("%q is no IP address, such as 10.0.0.1", b)
	}
	return nil
}

// apiAddr is where the API of a node is reached: HOST:PORT.
type apiAddr string

// UnmarshalText refuses what can't be connected to.
func (a *apiAddr) UnmarshalText(b []byte) error {
	*a = apiAddr(b)
	if host, port, err := net.SplitHostPort(string(b)); err != nil || host == "" || !isPort(port) {
		return fmt.Errorf("%q is not HOST:PORT, such as 10.0.0.1:7480", b)
	}
	return nil
}

// isPort reports whether a port is a number from 0 to 65535.
func isPort(port string) bool {
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}
