package node

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"torus/cluster"
	"torus/ring"
)

// DefaultPort is the base port P of a node: P API, P+1 blocks, P+2 etcd's
// clients, P+3 etcd's peers.
const DefaultPort = 7480

// Settings is how a node was set up. It is kept in the file node.json of the
// data directory, so that the node can be run again as it was.
type Settings struct {
	ID      ring.NodeID
	Name    string
	Cluster cluster.ID
	// Recovery is the founding of the cluster's records that the node follows. Only an
	// operator has it follow another: see Recover and Rejoin.
	Recovery cluster.Recovery
	// Founded is set once the cluster's first record is written, or the node has
	// joined. From then on records that are missing were lost, and are never made
	// anew.
	Founded bool
	// Registered is set once the node's record is written: when that is missing
	// later, the node was removed, and must not come back by itself.
	Registered bool
	Replicas   int // what the cluster is founded with: copies of a volume by default
	// Join has the etcd endpoints of the cluster, each HOST:PORT, by which the
	// node finds it: those of the peer it joined through, later those it knew
	// last. Empty for a node that founds a cluster.
	Join []string

	Roles     []cluster.Role
	Listen    netip.Addr
	Advertise netip.Addr // where others reach the node; Listen if not valid
	Port      int        // base port; 0 in what New is given: any four free ones
	Insecure  bool       // plain connections also on addresses that other machines can reach
	Zone      ring.Zone
	Host      string
	Capacity  int64 // bytes for pages; 0: what the file system has
	Reserve   int64 // bytes held back for index and records; 0: the store's default
	NBD       NBD
}

// NBD is where and how volumes are exported.
type NBD struct {
	Listen      []string // HOST:PORT, or the path of a Unix socket; none: off
	Cert, Key   string   // PEM files; "": no TLS
	ClientCA    string   // "": clients need no certificate
	TLSOptional bool     // clients may also connect without
}

// Has reports whether the node has a role.
func (s Settings) Has(r cluster.Role) bool { return cluster.Node{Roles: s.Roles}.Has(r) }

// address returns where others reach a port of the node: the base port + offset.
func (s Settings) address(offset int) string {
	ip := s.Listen
	if s.Advertise.IsValid() {
		ip = s.Advertise
	}
	return addrPort(ip, s.Port+offset)
}

// ErrSettings: settings that a node cannot run with.
var ErrSettings = errors.New("bad setting")

// ErrNoNode: a directory in which no node was set up.
var ErrNoNode = errors.New("no node was set up here")

// ErrFormat: a file of a format that this program does not know.
var ErrFormat = errors.New("unknown format")

// ErrFounded: a directory that has a node already.
var ErrFounded = errors.New("has a node already")

// New returns the settings of a new node: given, with what
// it leaves out drawn or filled in.
func New(given Settings) Settings {
	s := given
	if s.ID == 0 {
		s.ID = ring.NodeID(random64())
	}
	if s.Cluster == "" {
		s.Cluster = cluster.ID(fmt.Sprintf("%016x", random64()))
	}
	if s.Name == "" {
		s.Name = fmt.Sprintf("node-%04x", uint16(s.ID))
	}
	if !s.Listen.IsValid() {
		s.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if len(s.Roles) == 0 {
		s.Roles = []cluster.Role{cluster.RoleEtcd, cluster.RoleStorage, cluster.RoleNBD}
	}
	if s.Host == "" {
		s.Host, _ = os.Hostname() // "" is a host too
	}
	if s.Replicas == 0 {
		s.Replicas = 1
	}
	return s
}

func random64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// Check returns ErrSettings, naming value and bound, unless a node can run so.
func (s Settings) Check() error {
	if err := cluster.CheckName(s.Name); err != nil {
		return fmt.Errorf("%w: node name: %w", ErrSettings, err)
	}
	if s.Port < 0 || s.Port > 65535-3 || s.Port > 0 && s.Port < 1024 {
		return fmt.Errorf("%w: port %d: the base of four ports is from 1024 to %d, or 0 for any", ErrSettings, s.Port, 65535-3)
	}
	if err := s.checkAddresses(); err != nil {
		return err
	}
	if len(s.NBD.Listen) > 0 && !s.Has(cluster.RoleNBD) {
		return fmt.Errorf("%w: NBD address %s: the node was set up without the role nbd and exports nothing", ErrSettings, s.NBD.Listen[0])
	}
	return s.checkExports()
}

// checkAddresses refuses what strangers could reach, and what nobody could.
func (s Settings) checkAddresses() error {
	for _, ip := range []netip.Addr{s.Listen, s.Advertise} {
		if ip.IsValid() && !ip.IsLoopback() && !s.Insecure {
			return fmt.Errorf("%w: address %v: connections between nodes are not encrypted yet, and whoever reaches API, etcd and blocks "+
				"owns all data: keep to a loopback address, or accept that in a network of your own with --insecure", ErrSettings, ip)
		}
	}
	told := s.Listen
	if s.Advertise.IsValid() {
		told = s.Advertise
	}
	if told.IsUnspecified() {
		return fmt.Errorf("%w: address %v says nothing to other nodes: name the one that they reach with --advertise", ErrSettings, told)
	}
	return nil
}

// settingsFile is node.json.
type settingsFile struct {
	Format     int        `json:"format"`
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Cluster    string     `json:"cluster"`
	Recovery   string     `json:"recovery,omitempty"`
	Founded    bool       `json:"founded"`
	Registered bool       `json:"registered"`
	Replicas   int        `json:"replicas"`
	Join       []string   `json:"join,omitempty"`
	Roles      []string   `json:"roles"`
	Listen     netip.Addr `json:"listen"`
	Advertise  netip.Addr `json:"advertise,omitzero"`
	Port       int        `json:"port"`
	Insecure   bool       `json:"insecure,omitempty"`
	Zone       string     `json:"zone,omitempty"`
	Host       string     `json:"host,omitempty"`
	Capacity   int64      `json:"capacity,omitempty"`
	Reserve    int64      `json:"reserve,omitempty"`
	NBD        nbdFile    `json:"nbd"`
}

type nbdFile struct {
	Listen      []string `json:"listen,omitempty"`
	Cert        string   `json:"cert,omitempty"`
	Key         string   `json:"key,omitempty"`
	ClientCA    string   `json:"clientCA,omitempty"`
	TLSOptional bool     `json:"tlsOptional,omitempty"`
}

const settingsFormat = 1

func settingsPath(dir string) string { return filepath.Join(dir, "node.json") }

// Load reads the settings of the node in dir. ErrNoNode if there is none,
// ErrFormat if a newer program set it up.
func Load(dir string) (Settings, error) {
	path := settingsPath(dir)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Settings{}, fmt.Errorf("directory %s: %w", dir, ErrNoNode)
	}
	if err != nil {
		return Settings{}, err
	}
	return decodeSettings(path, b)
}

func decodeSettings(path string, b []byte) (Settings, error) {
	// The format first: of another one nothing else can be relied on.
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Settings{}, fmt.Errorf("file %s: not readable as JSON: %w", path, err)
	}
	if head.Format != settingsFormat {
		return Settings{}, fmt.Errorf("file %s: %w %d: this program knows format %d, another version of it set the node up",
			path, ErrFormat, head.Format, settingsFormat)
	}
	var f settingsFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return Settings{}, fmt.Errorf("file %s: %w", path, err)
	}
	id, err := strconv.ParseUint(f.ID, 16, 64)
	if err != nil || id == 0 || len(f.ID) != 16 {
		return Settings{}, fmt.Errorf("file %s: node ID %q is not 16 hexadecimal digits", path, f.ID)
	}
	s := Settings{
		ID: ring.NodeID(id), Name: f.Name, Cluster: cluster.ID(f.Cluster), Founded: f.Founded, Registered: f.Registered, Replicas: f.Replicas,
		Join: f.Join, Listen: f.Listen, Advertise: f.Advertise, Port: f.Port, Insecure: f.Insecure, Zone: ring.Zone(f.Zone), Host: f.Host,
		Capacity: f.Capacity, Reserve: f.Reserve, NBD: NBD(f.NBD),
	}
	for _, r := range f.Roles {
		s.Roles = append(s.Roles, cluster.Role(r))
	}
	if err := s.Recovery.UnmarshalText([]byte(f.Recovery)); err != nil {
		return Settings{}, fmt.Errorf("file %s: %w", path, err)
	}
	return s, nil
}

// save replaces node.json; it is durable on return.
func (s Settings) save(dir string) error {
	f := settingsFile{
		Format: settingsFormat, ID: s.ID.String(), Name: s.Name, Cluster: string(s.Cluster), Recovery: s.Recovery.String(), Founded: s.Founded, Registered: s.Registered,
		Replicas: s.Replicas, Join: s.Join, Listen: s.Listen, Advertise: s.Advertise, Port: s.Port, Insecure: s.Insecure, Zone: string(s.Zone), Host: s.Host,
		Capacity: s.Capacity, Reserve: s.Reserve, NBD: nbdFile(s.NBD),
	}
	for _, r := range s.Roles {
		f.Roles = append(f.Roles, string(r))
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(settingsPath(dir), append(b, '\n'))
}

// replaceFile puts b into path, whole or not at all, durably.
func replaceFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
