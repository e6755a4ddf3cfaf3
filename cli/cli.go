// Package cli is the command line: it parses commands, wires the parts they
// need, and prints what came of it for people or as JSON.
//
// What a command does is left to the packages below; what it says is here, so
// that errors name the object and the command that helps, and the exit code
// tells a script what happened.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/alecthomas/kong"
)

// Exit codes.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitConflict = 4 // or busy
)

// grammar is every command with its flags. Each flag is also read from the
// environment, as TORUS_ and its name.
type grammar struct {
	Cluster   []apiAddr `placeholder:"HOST:PORT" default:"127.0.0.1:7480" help:"API of any node of the cluster; several are tried in turn."`
	Output    string    `short:"o" enum:"table,json" default:"table" help:"How results are printed: table or json."`
	LogLevel  string    `enum:"debug,info,warn,error" default:"info" help:"The least that is logged: debug, info, warn or error."`
	LogFormat string    `enum:"text,json" default:"text" help:"How log lines look: text or json."`

	Dev        devCmd        `cmd:"" help:"Try Torus: a cluster of one in this process, with a volume exported."`
	Init       initCmd       `cmd:"" help:"Found a cluster and run its first node, in the foreground."`
	Join       joinCmd       `cmd:"" help:"Join a cluster and run a node of it, in the foreground."`
	Start      startCmd      `cmd:"" help:"Run the node of a data directory again, as it was set up."`
	Status     statusCmd     `cmd:"" help:"Show how the cluster is: nodes, volumes, space."`
	NBD        nbdCmds       `cmd:"" name:"nbd" help:"Export volumes from this machine."`
	Node       nodeCmds      `cmd:"" help:"List, show and remove nodes."`
	Ring       ringCmds      `cmd:"" help:"Show where data lies."`
	Scrub      scrubCmd      `cmd:"" help:"Verify volumes: read every copy, compare them, rewrite what is bad."`
	Volume     volumeCmds    `cmd:"" help:"Create, list, show, rename and delete volumes."`
	Store      storeCmds     `cmd:"" help:"Look after the store of a node."`
	Metadata   metadataCmds  `cmd:"" help:"Look after snapshots of the cluster's records, and after a recovery."`
	Recover    recoverCmd    `cmd:"" help:"Found the cluster's records anew, from a snapshot or from what one node has left of them."`
	Version    versionCmd    `cmd:"" help:"Print the version of this program."`
	Completion completionCmd `cmd:"" help:"Print a script that completes commands in a shell."`
}

// An app is one run of the program.
type app struct {
	ctx    context.Context
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger
	json   bool      // results are printed as JSON
	peers  []apiAddr // --cluster
	parser *kong.Kong
}

// Run does what args ask for and returns the exit code. ctx ends when the
// program is to stop. Results go to stdout, all else to stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) (code int) {
	var g grammar
	parser, err := kong.New(&g,
		kong.Name("torus"),
		kong.Description("Torus turns the disks of a few machines into one pool and hands out block volumes from it."),
		kong.DefaultEnvars("TORUS"),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "torus:", err)
		return exitFailed
	}
	defer func() { // --help is done, and says so by calling Exit
		if r := recover(); r != nil {
			e, ok := r.(exit)
			if !ok {
				panic(r)
			}
			code = int(e)
		}
	}()
	command, err := parser.Parse(args)
	if err != nil {
		return usage(stderr, err)
	}
	a := &app{ctx: ctx, stdout: stdout, stderr: stderr, json: g.Output == "json", peers: g.Cluster, parser: parser}
	a.log = newLogger(stderr, g.LogLevel, g.LogFormat)
	if err := command.Run(a); err != nil {
		return report(stderr, err)
	}
	return exitDone
}

// exit is what kong's Exit is turned into.
type exit int

// usage says what is wrong with the arguments, and which command tells more.
func usage(w io.Writer, err error) int {
	help := "torus --help"
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil && p.Context.Selected() != nil {
		help = p.Context.Selected().FullPath() + " --help"
	}
	fmt.Fprintf(w, "torus: %v\nSee %q.\n", err, help)
	return exitUsage
}

// newLogger returns the program's log.
func newLogger(w io.Writer, level, format string) *slog.Logger {
	o := &slog.HandlerOptions{}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err == nil { // kong has checked it
		o.Level = l
	}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
