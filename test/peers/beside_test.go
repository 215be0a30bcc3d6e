package peers

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// compared is a row with what came of it.
type compared struct {
	row
	official, helper, broker outcome
}

// TestTheBrokerBesideTheOfficialProvider asks the same of both, and of the ECR helper. What differs must be declared in the row, and what is declared must differ; the document that shows it
// must be what this makes of it (-update writes it).
func TestTheBrokerBesideTheOfficialProvider(t *testing.T) {
	results, ok := runAll(t, rows(), row.compare)
	if !ok {
		return
	}
	text := document(results)
	if *flagUpdate {
		if err := os.WriteFile(documentFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(documentFile)
	if err != nil || string(committed) != text {
		t.Errorf("%s is not what comes of the comparison (%v): run `go test -run %s -update` in test/peers, and read what has changed", documentFile, err, t.Name())
	}
}

// runAll compares all rows, beside each other; false: only some were asked for, so that there is no document.
func runAll(t *testing.T, all []row, compare func(row, *testing.T) compared) (results []compared, ok bool) {
	t.Helper()
	results = make([]compared, len(all))
	var done atomic.Int64
	t.Run("rows", func(t *testing.T) {
		for i, r := range all {
			t.Run(r.section+": "+r.name, func(t *testing.T) {
				t.Parallel()
				results[i] = compare(r, t)
				done.Add(1)
			})
		}
	})
	if int(done.Load()) != len(all) {
		t.Log("the document is compared when all rows are run")
		return nil, false
	}
	return results, true
}

func (r row) compare(t *testing.T) compared {
	t.Helper()
	c := compared{row: r, broker: broker.put(t, r)}
	c.judgeBroker(t)
	if d := c.broker[duration]; r.want == "token" && d != "the token's life less 5 minutes" {
		t.Errorf("the broker's cacheDuration is %s, want the token's life less 5 minutes", d)
	}
	if r.beyond {
		return c
	}
	c.official = official.put(t, r)
	for _, f := range order {
		why, declared := r.reason(f, c)
		switch differ := c.official[f] != c.broker[f]; {
		case differ && !declared:
			t.Errorf("%s differs, and no reason is given: the official provider's is %q, the broker's %q", f, c.official[f], c.broker[f])
		case !differ && r.differs[f] != "":
			t.Errorf("%s is %q for both, but is said to differ: %s", f, c.broker[f], why)
		}
	}
	if r.noHelper {
		return c
	}
	c.helper = helper.put(t, r)
	differ := c.helper[result] != c.broker[result] || c.helper[registry] != c.broker[registry]
	if differ != (r.helper != "") {
		t.Errorf("the ECR helper's result is %q (registry: %q), the broker's %q (registry: %q), the reason given for a difference is %q",
			c.helper[result], c.helper[registry], c.broker[result], c.broker[registry], r.helper)
	}
	return c
}

// judgeBroker makes sure that the broker does what the row wants.
func (c compared) judgeBroker(t *testing.T) {
	t.Helper()
	r := c.row
	if c.broker[result] != r.want {
		t.Errorf("the broker's result is %q (registry: %q), want %q", c.broker[result], c.broker[registry], r.want)
	}
	if r.want == "token" && c.broker[registry] != takes {
		t.Errorf("the registry does not take the broker's token: %s", c.broker[registry])
	}
	for _, f := range r.tells {
		if told := slices.Contains(strings.Split(c.broker[says], ", "), f.name); told == f.never {
			t.Errorf("the broker's error tells %q: %t", f.name, told)
		}
	}
}

// reason is the row's, or one that holds everywhere.
func (r row) reason(f field, c compared) (reason, bool) {
	if why, ok := r.differs[f]; ok {
		return why, true
	}
	// Where the results differ, so does all that comes of them.
	if why := r.differs[result]; why != "" && c.official[result] != c.broker[result] {
		return why, true
	}
	why, ok := everywhere[f]
	return why, ok && c.official[result] == "token" && c.broker[result] == "token"
}

const documentFile = "../../docs/backends/ecr-peer.md"

// document is what the rows come to.
func document(all []compared) string {
	var b strings.Builder
	b.WriteString(`<!-- Made by test/peers: go test -run TestTheBrokerBesideTheOfficialProvider -update -->

# The broker beside the official ECR providers

The same requests, environment and cloud (a fake one, which verifies signatures, tokens and policies as AWS does) were given to

- **official**: ` + "`ecr-credential-provider`" + ` of kubernetes/cloud-provider-aws v1.37.0, started as the kubelet starts it;
- **helper**: ` + "`docker-credential-ecr-login`" + ` v0.12.0, a docker credential helper, asked for the registry's host: it knows no pods and gives no cache hints;
- **broker**: the broker with one provider, ` + "`backend: ecr`" + `, with no settings, unless the row says so.

A *token* is one with which the registry lets the image be pulled; *nothing* is an answer without credentials, with which the kubelet pulls anonymously; a *failure* is exit status 1 with a reason on
standard error, and *tells* what the reason names of that which its reader would want to know (the helper keeps its reasons in a log file). Where the official provider and the broker differ, the
last column says why. What no column mentions is equal: user name, keys, cache hints, the API that was asked, and as whom.

`)
	b.WriteString("One difference is everywhere:\n\n")
	for _, f := range order {
		if why := everywhere[f]; why != "" {
			fmt.Fprintf(&b, "- **%s**: official: half the token's life; broker: its life less 5 minutes. %s.\n", f, why)
		}
	}
	section := ""
	for _, c := range all {
		if c.section != section {
			section = c.section
			fmt.Fprintf(&b, "\n## %s\n\n| asked | official | helper | broker | why it differs |\n| --- | --- | --- | --- | --- |\n", section)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.name, c.cell(c.official), c.cell(c.helper.asked()), c.cell(c.broker), c.why())
	}
	return b.String()
}

// cell is one side's part of a row.
func (c compared) cell(o outcome) string {
	switch {
	case o == nil && c.beyond:
		return "has no such setting"
	case o == nil:
		return "–"
	}
	parts := []string{o[result]}
	if o[result] == "token" && o[registry] != takes {
		parts[0] = "**token that is of no use**: " + o[registry]
	}
	for _, f := range order[2:] {
		shown := c.differs[f] != "" || f == says || c.beyond && (f == identity || f == keyType)
		if o[f] != "" && shown {
			parts = append(parts, fmt.Sprintf("%s: %s", f, o[f]))
		}
	}
	return strings.ReplaceAll(strings.Join(parts, "; "), "|", "\\|")
}

// asked is the helper's part of what was asked: it has fewer fields, and keeps its reasons to itself.
func (o outcome) asked() outcome {
	if o == nil {
		return nil
	}
	return outcome{result: o[result], registry: o[registry], api: o[api]}
}

// why are the reasons for the row's differences, each once.
func (c compared) why() string {
	var all []string
	for _, f := range order {
		if why := string(c.differs[f]); why != "" && !slices.Contains(all, why) {
			all = append(all, why)
		}
	}
	if why := string(c.row.helper); why != "" && !slices.Contains(all, why) {
		all = append(all, "helper: "+why)
	}
	return strings.Join(all, "; ")
}
