package main

import (
	"flag"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var flagUpdate = flag.Bool("update", false, "write the tables and the picture of the document anew")

const (
	documentFile = "../../docs/fleet.md"
	pictureFile  = "../../docs/fleet.svg"
)

func TestTheDocumentShowsWhatTheProgramPrints(t *testing.T) {
	if raced || runtime.GOARCH != "amd64" {
		// The events of other processors may differ in a nanosecond, and so in the last digits: they may round a product and a sum at once.
		t.Log("NOT RUN: the documented fleet takes the race detector many minutes, and its last digits are amd64's")
		return
	}
	s := newScenarios(documented)
	s.run()

	document, err := os.ReadFile(documentFile)
	if err != nil {
		t.Fatal(err)
	}
	filled, err := fill(string(document), s.tables())
	if err != nil {
		t.Fatal(err)
	}
	if *flagUpdate {
		for file, content := range map[string]string{documentFile: filled, pictureFile: s.picture()} {
			if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	picture, err := os.ReadFile(pictureFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(document), filled); diff != "" {
		t.Errorf("%s is not what the program prints: go test -run %s -update (-there +printed):\n%s", documentFile, t.Name(), diff)
	}
	if diff := cmp.Diff(string(picture), s.picture()); diff != "" {
		t.Errorf("%s is not what the program draws: go test -run %s -update (-there +drawn):\n%s", pictureFile, t.Name(), diff)
	}
}

// TestASmallFleetFillsEveryTable is quick, and runs all that the documented fleet runs.
func TestASmallFleetFillsEveryTable(t *testing.T) {
	s := newScenarios(fleet{seed: 1, nodes: 100, images: 8, registries: 4})
	s.run()
	for _, table := range s.tables() {
		for _, row := range table.rows {
			cells := table.row(row)
			if len(cells) != len(table.head) {
				t.Errorf("table %s: %d cells below %d headings", table.name, len(cells), len(table.head))
			}
			if row.total.Granted == 0 || len(row.pulled) != row.config.Nodes*row.config.Images {
				t.Errorf("table %s, %s: %d tokens given out, %d pulls", table.name, row.name, row.total.Granted, len(row.pulled))
			}
		}
	}
	if picture := s.picture(); strings.Count(picture, "<path d=\"M70.0 ") < 4 {
		t.Errorf("the picture lacks curves:\n%s", picture)
	}
}

func TestADocumentWithoutAPlaceForATableIsRefused(t *testing.T) {
	tables := []table{{name: "four", head: []string{"a", "b"}}}
	for _, document := range []string{"", "<!-- four -->\n", "<!-- end -->\n<!-- four -->\n"} {
		if _, err := fill(document, tables); err == nil || !strings.Contains(err.Error(), `"four"`) {
			t.Errorf("%q: %v", document, err)
		}
	}
	got, err := fill("x\n<!-- four -->\nold\n<!-- end -->\ny\n", tables)
	if want := "x\n<!-- four -->\n\n| a | b |\n| --- | ---: |\n\n<!-- end -->\ny\n"; err != nil || got != want {
		t.Errorf("filled: %q, %v", got, err)
	}
}

func TestFigures(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 14349220: "14,349,220"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s, want %s", n, got, want)
		}
	}
}
