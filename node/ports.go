package node

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
)

// portsPerNode: API, blocks, etcd's clients, etcd's peers.
const portsPerNode = 4

// Free bases are looked for below the ports that Linux gives to outgoing
// connections (32768 and up), which come and go.
const (
	firstFreePort = 10000
	lastFreePort  = 32000
	portTries     = 200
)

// freePorts returns the base of four neighbouring ports that nobody listens on.
func freePorts(host netip.Addr) (int, error) {
	for range portTries {
		base := firstFreePort + rand.IntN((lastFreePort-firstFreePort)/portsPerNode)*portsPerNode
		if portsFree(host, base) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("no %d neighbouring free ports on %v found in %d tries between %d and %d",
		portsPerNode, host, portTries, firstFreePort, lastFreePort)
}

func portsFree(host netip.Addr, base int) bool {
	for i := range portsPerNode {
		l, err := net.Listen("tcp", addrPort(host, base+i))
		if err != nil {
			return false
		}
		defer l.Close()
	}
	return true
}

func addrPort(host netip.Addr, port int) string {
	return net.JoinHostPort(host.String(), strconv.Itoa(port))
}
