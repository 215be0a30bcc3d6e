//go:build linux

package steady

import (
	"debug/elf"
	"testing"
)

// Where anything in a program may look a method up by a name that is not known when it is linked, as templates do, every exported method of every type in use is linked too, and the runtime's
// tables, which each start of the program pays for, grow with them.
func TestNothingLooksMethodsUpByName(t *testing.T) {
	const lookup = "text/template.(*state).evalField" // a template's way to do so
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	symbols, err := file.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	functions := 0
	for _, symbol := range symbols {
		if elf.ST_TYPE(symbol.Info) == elf.STT_FUNC {
			functions++
		}
		if symbol.Name == lookup {
			t.Fatalf("%s is linked: is the program built with the tag grpcnotrace, and what else uses templates?", symbol.Name)
		}
	}
	if functions < 1000 {
		t.Errorf("only %d functions are seen: were the symbols left out?", functions)
	}
}
