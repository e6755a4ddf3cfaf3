package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints the script. It lists what there is; nothing is asked of a cluster
// while somebody types.
func (c *completionCmd) Run(a *app) error {
	words := completions(a.parser.Model.Node, nil)
	var script string
	switch c.Shell {
	case "bash":
		script = bashScript(words)
	case "zsh":
		script = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + bashScript(words)
	case "fish":
		script = fishScript(words)
	}
	_, err := fmt.Fprint(a.stdout, script)
	return err
}

// completion is what may follow the words of a command.
type completion struct {
	path  string // "volume create"; "" for torus itself
	words []string
}

// completions lists the commands below n, each with what may follow it.
func completions(n *kong.Node, path []string) []completion {
	c := completion{path: strings.Join(path, " ")}
	var below []completion
	for _, child := range n.Children {
		if child.Hidden {
			continue
		}
		c.words = append(c.words, child.Name)
		below = append(below, completions(child, append(slices.Clone(path), child.Name))...)
	}
	for _, p := range n.Positional {
		if p.Enum != "" {
			c.words = append(c.words, p.EnumSlice()...)
		}
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			c.words = append(c.words, "--"+f.Name)
		}
	}
	slices.Sort(c.words)
	c.words = slices.Compact(c.words)
	return append([]completion{c}, below...)
}

// bashScript completes in bash, and in zsh with bashcompinit.
func bashScript(all []completion) string {
	var b strings.Builder
	b.WriteString("# Completion of torus. Use: source <(torus completion bash)\n_torus() {\n" +
		"  local cur=\"${COMP_WORDS[COMP_CWORD]}\" path=\"\" word words=\"\" i\n" +
		"  for ((i = 1; i < COMP_CWORD; i++)); do\n" +
		"    word=\"${COMP_WORDS[i]}\"\n" +
		"    case \"${path:+$path }$word\" in\n")
	paths := make([]string, 0, len(all))
	for _, c := range all {
		if c.path != "" {
			paths = append(paths, fmt.Sprintf("%q", c.path))
		}
	}
	fmt.Fprintf(&b, "      %s) path=\"${path:+$path }$word\" ;;\n    esac\n  done\n  case \"$path\" in\n", strings.Join(paths, "|"))
	for _, c := range all {
		fmt.Fprintf(&b, "    %q) words=%q ;;\n", c.path, strings.Join(c.words, " "))
	}
	b.WriteString("  esac\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n" +
		"  if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- \"$cur\")); fi\n}\ncomplete -F _torus torus\n")
	return b.String()
}

// fishScript completes in fish.
func fishScript(all []completion) string {
	var b strings.Builder
	b.WriteString("# Completion of torus. Use: torus completion fish | source\n")
	for _, c := range all {
		condition := "__fish_use_subcommand"
		if c.path != "" {
			var seen []string
			for _, w := range strings.Fields(c.path) {
				seen = append(seen, "__fish_seen_subcommand_from "+w)
			}
			condition = strings.Join(seen, "; and ")
		}
		for _, w := range c.words {
			if flag, ok := strings.CutPrefix(w, "--"); ok {
				fmt.Fprintf(&b, "complete -c torus -n '%s' -l %s\n", condition, flag)
			} else {
				fmt.Fprintf(&b, "complete -c torus -f -n '%s' -a %s\n", condition, w)
			}
		}
	}
	return b.String()
}
