package agent

import (
	"os"
	"path/filepath"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// Program watches the file that this process was started from, for one that is put in its place.
type Program struct {
	path  string
	began os.FileInfo
	seen  os.FileInfo // at the last look, if it was another than began
	tried os.FileInfo // reported already
}

// ThisProgram is the running one, under the name that it was started by: a link counts as its target, so that a link that is led elsewhere is a replacement too.
func ThisProgram() (*Program, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	began, err := os.Stat(self)
	if err != nil {
		return nil, err
	}
	path := self
	if named := os.Args[0]; filepath.IsAbs(named) {
		if info, err := os.Stat(named); err == nil && os.SameFile(info, began) {
			path = named
		}
	}
	return &Program{path: path, began: began}, nil
}

// Path is where the program is.
func (p *Program) Path() string { return p.path }

// Replaced says, once for each file, that another file has taken the program's place, that it has not changed between this call and the one before, so that it is whole, and that nobody else could have written it. The error
// says why it cannot be used.
func (p *Program) Replaced() (bool, error) {
	now, err := os.Stat(p.path)
	if err != nil {
		return false, nil //nolint:nilerr // it is gone for now: removed, or being replaced
	}
	last := p.seen
	p.seen = now
	switch {
	case same(now, p.began), p.tried != nil && same(now, p.tried), last == nil, !same(now, last):
		return false, nil
	}
	p.tried = now
	if err := trust.Executable(p.path, nil); err != nil {
		return false, err
	}
	return true, nil
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
