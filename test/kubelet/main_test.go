package kubelet

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

var (
	flagSets   = flag.Int("sets", 3000, "provider sets for each test of the fast layer")
	flagBinary = flag.Int("binary-sets", 100, "provider sets for each test that runs the built binary")
	flagSeed   = flag.Uint64("seed", 0, "seed of the generated sets; 0 takes one from the clock")
	flagKlog   = flag.Bool("klog", false, "let the kubelet's code log to standard error")
)

// What was done, for the line at the end: a test that stopped generating would otherwise look like one that found nothing.
var provided, lookups, agreed, fallbacks, registryWide, reused, starts atomic.Int64

// scratchDir is what the sets of one process share; t.TempDir for each of thousands would cost more than the tests.
var scratchDir string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if *flagSeed == 0 {
		*flagSeed = uint64(time.Now().UnixNano())
	}
	// rapid generates and shrinks; one seed and one number serve all tests.
	set("rapid.seed", strconv.FormatUint(*flagSeed, 10))
	set("rapid.nofailfile", "true")
	if !*flagKlog {
		klog.SetLogger(logr.Discard())
	}
	dir, err := os.MkdirTemp("", "credential-broker-test-kubelet-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	scratchDir = dir
	defer sharedVault.Close()
	status := m.Run()
	fmt.Printf("%d provider sets, %d lookups by the kubelet's code, %d answers compared (%d fallbacks of several values, %d for a whole registry, %d taken from the kubelet's cache), %d starts of the built broker, seed %d\n",
		provided.Load(), lookups.Load(), agreed.Load(), fallbacks.Load(), registryWide.Load(), reused.Load(), starts.Load(), *flagSeed)
	return status
}

func set(name, value string) {
	if err := flag.Set(name, value); err != nil {
		panic(err)
	}
}

// checks sets how many sets the next rapid.Check tries.
func checks(n int) { set("rapid.checks", strconv.Itoa(n)) }
