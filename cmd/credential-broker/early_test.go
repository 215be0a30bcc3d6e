package main

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// valuesOf parses arguments as main does: found is false where they are for a subcommand or in error.
func valuesOf(arguments []string) (values fast.Arguments, found bool) {
	root := newRoot(os.Stdin)
	cmd, rest, err := root.Find(arguments)
	if err != nil || cmd != root || cmd.ParseFlags(rest) != nil || cmd.ValidateArgs(cmd.Flags().Args()) != nil {
		return fast.Arguments{}, false
	}
	return fast.Arguments{
		Config: value(cmd, "config"), BackendDir: value(cmd, "backend-dir"),
		Audience: value(cmd, "audience"), HasAudience: cmd.Flags().Changed("audience"),
		Agent: value(cmd, "agent"), HasAgent: cmd.Flags().Changed("agent"),
	}, true
}

func value(cmd *cobra.Command, flag string) string { return cmd.Flags().Lookup(flag).Value.String() }

// What runs before main reads the command line by itself. Whatever it says that it understands, main has to understand likewise.
func TestTheEarlyPathReadsArgumentsAsMainDoes(t *testing.T) {
	words := []string{
		"--config", "--config=/etc/x", "--config=", "--backend-dir", "--backend-dir=/b", "--audience", "--audience=", "--audience=sts=x", "--agent", "--agent=/run/x", "--agent=",
		"/etc/broker.yaml", "", "--", "-", "=", "--=", "-h", "--help", "--help=true", "-c", "-config", "-agent", "---config", "--conf", "--Config", "--config/x", "--no-agent", "-config=/x",
		"validate", "get", "help", "agent", "completion", "__complete", "registry.example/app", "--audience=--agent", "--version", "-v", "a b", "ö", "\n",
	}
	random := rand.New(rand.NewPCG(5, 5))
	understood := 0
	for range 20_000 {
		arguments := make([]string, random.IntN(6))
		for i := range arguments {
			// Half of the words from those that can be understood, so that longer lists are at times.
			arguments[i] = words[random.IntN([]int{11, len(words)}[random.IntN(2)])]
		}
		early, ok := fast.ParseArguments(strings.Join(slices.Concat([]string{"credential-broker"}, arguments, []string{""}), "\x00"))
		if !ok {
			continue
		}
		understood++
		if want, ok := valuesOf(arguments); !ok || early != want {
			t.Fatalf("%q: before main %+v; main understands it: %t, as %+v", arguments, early, ok, want)
		}
	}
	if understood < 3000 {
		t.Errorf("only %d of 20000 lists were understood: too few to say that they are so rightly", understood)
	}
}
