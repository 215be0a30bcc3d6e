//go:build linux

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestAHundredRequestsWithoutAnAgentDoNotStartFourHundredBackends(t *testing.T) {
	n := newNode(t)
	n.socket = "" // there is to be none
	const requests, providers = 100, 4
	var configured []object
	notes := map[string]string{}
	for i := range providers {
		name := fmt.Sprintf("provider-%d", i)
		alive := filepath.Join(n.dir, name)
		if err := os.Mkdir(alive, 0o700); err != nil {
			t.Fatal(err)
		}
		notes[name] = filepath.Join(n.dir, name+"-most")
		configured = append(configured, n.whose(name, "WHOSE_GENERATION", name, "WHOSE_KEYS", "registry.example/team/"+strings.Repeat("x", i), "WHOSE_ALIVE", alive, "WHOSE_MOST", notes[name]))
	}
	n.config(nil, configured...)
	var all sync.WaitGroup
	for i := range requests {
		all.Go(func() {
			image := "registry.example/team/xxxx" + strconv.Itoa(i)
			want := map[string]string{}
			for i := range providers {
				want["registry.example/team/"+strings.Repeat("x", i)] = fmt.Sprintf("provider-%d|%s|node", i, image)
			}
			if err := n.pull(image, "").is(want); err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	all.Wait()
	// So many run at once however slow their start and their cloud are. Nobody here waits for half of its time, and goes on without a place.
	bound := 8 * max(2, 2*runtime.NumCPU())
	for name, file := range notes {
		started, most := 0, 0
		for line := range strings.Lines(string(must(os.ReadFile(file)))) {
			alive := must(strconv.Atoi(strings.TrimSpace(line)))
			started, most = started+1, max(most, alive)
		}
		t.Logf("%s: %d backends started, at most %d at once", name, started, most)
		if started < requests || most > bound {
			t.Errorf("%s: %d backends were started and %d lived at once, want %d and at most %d", name, started, most, requests, bound)
		}
	}
	n.nothingLeft()
}
