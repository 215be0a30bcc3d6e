//go:build unix

package plugin

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestASlotIsFreeAgainWhenItIsReleased(t *testing.T) {
	base := filepath.Join(shortDir(t), "b")
	one, other := NewRuntime(RuntimeOptions{BaseDirs: []string{base}}), NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
	defer one.Close()
	defer other.Close()
	first, waited := one.Slot(t.Context(), "p", 1)
	if waited {
		t.Error("the first waited")
	}
	if _, waited := other.Slot(withDeadline(t, time.Minute), "another", 1); waited {
		t.Error("a slot of another name was waited for")
	}
	taken := make(chan bool)
	go func() {
		_, waited := other.Slot(withDeadline(t, time.Minute), "p", 1)
		taken <- waited
	}()
	select {
	case <-taken:
		t.Error("two hold the one slot there is")
	case <-time.After(100 * time.Millisecond):
		first()
		if waited := <-taken; !waited {
			t.Error("the second did not wait")
		}
	}
}

func TestWhoWaitsForASlotHasHalfItsTimeLeft(t *testing.T) {
	base := filepath.Join(shortDir(t), "b")
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
	defer rt.Close()
	release, _ := rt.Slot(t.Context(), "p", 1)
	defer release()
	ctx := withDeadline(t, 4*time.Second)
	began := time.Now()
	if _, waited := rt.Slot(ctx, "p", 1); !waited || ctx.Err() != nil || time.Since(began) < 2*time.Second {
		t.Errorf("it waited (%t) for %s of its 4 s", waited, time.Since(began))
	}
	cancelled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, waited := rt.Slot(cancelled, "p", 1); !waited || cancelled.Err() == nil { // it would wait for ten seconds and more
		t.Error("it has not waited until nobody did for it")
	}
}

func TestWhereThereAreNoSlotsNobodyWaits(t *testing.T) {
	file := filepath.Join(shortDir(t), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{file}})
	release, waited := rt.Slot(t.Context(), "p", 1)
	if waited {
		t.Error("it waited")
	}
	release()
}

func TestOldSlotsAreSweptAndThoseInUseAreNot(t *testing.T) {
	base := filepath.Join(shortDir(t), "b")
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
	defer rt.Close()
	slot := func(name string) (path string, release func()) {
		t.Helper()
		before, _ := filepath.Glob(filepath.Join(base, "s-*"))
		release, _ = rt.Slot(t.Context(), name, 1)
		after, _ := filepath.Glob(filepath.Join(base, "s-*"))
		for _, path := range after {
			if len(before) == 0 || path != before[0] {
				return path, release
			}
		}
		t.Fatalf("no file for a slot among %v", after)
		return "", nil
	}
	used, releaseUsed := slot("used")
	defer releaseUsed()
	unused, release := slot("unused")
	release()
	old := time.Now().Add(-2 * slotAge)
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	sweep(base)
	if !exists(unused) {
		t.Error("a young one has been swept")
	}
	for _, path := range []string{used, unused} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweep(base)
	if exists(unused) || !exists(used) {
		t.Errorf("after the sweep: unused %t, used %t; want only the used one", exists(unused), exists(used))
	}
}

func BenchmarkSlot(b *testing.B) {
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{filepath.Join(dir, "b")}})
	defer rt.Close()
	for b.Loop() {
		release, _ := rt.Slot(b.Context(), "p", 4)
		release()
	}
}

func TestACrowdThatWaitsInVainSetsOutBitByBit(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 4 * time.Second, 0.5: 5500 * time.Millisecond, 1: 7 * time.Second} {
		if got := slotPatience(8*time.Second, random); got != want {
			t.Errorf("with %g: %s of 8s, want %s", random, got, want)
		}
	}
}
