package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Version tells whether a configuration may have changed, without reading it.
type Version struct {
	files string
	// newest is when the youngest of the files was changed, as far as the file system tells.
	newest time.Time
}

// Equal says that nothing that Look looks at differs.
func (v Version) Equal(other Version) bool { return v.files == other.files }

// Settled says that a change after t would have given another Version: file systems tell times apart by a few milliseconds only, so what was read right after it had been written
// may have been written once more since.
func (v Version) Settled(t time.Time) bool {
	age := t.Sub(v.newest)
	return age > coarsestTime || age < -time.Minute // a time in the future says nothing, and would never be settled
}

// coarsestTime is more than two changes of a file can lie apart and bear the same time: ten milliseconds on Linux (a tick of the kernel), two seconds on FAT, which nobody has below /etc.
const coarsestTime = 100 * time.Millisecond

// rereads is how often a configuration is read once more because it was changed meanwhile. It takes a millisecond each time.
const rereads = 20

// ReadWhole has read read the files at paths, and once more as long as they were changed meanwhile: of several files some may have been read before they were exchanged and others after it, and that is no
// configuration that anybody made. It gives the version that was read, and when that was looked at. The error says that the changes do not end.
func ReadWhole(now func() time.Time, paths func() []string, read func()) (Version, time.Time, error) {
	began := now()
	version := Look(paths()...)
	for range rereads {
		read()
		again := now()
		after := Look(paths()...)
		if after.Equal(version) {
			return version, began, nil
		}
		began, version = again, after
	}
	return version, began, errChanging
}

var errChanging = errors.New("the configuration is being changed all the time: nobody can tell what it is")

// Look gives the version of the configuration that Load would read from the same paths: which files there are, and what the file system says of each. A path that cannot be looked at has a
// version too.
func Look(paths ...string) Version {
	var v Version
	var b strings.Builder
	for _, path := range paths {
		files, problem := filesOf(path)
		if problem != nil {
			fmt.Fprintf(&b, "%q %s\n", path, problem.Message)
			continue
		}
		fmt.Fprintf(&b, "%q %d\n", path, len(files))
		for _, file := range files {
			info, err := os.Stat(file)
			if err != nil {
				fmt.Fprintf(&b, "%q %s\n", file, reason(err))
				continue
			}
			changed, identity := identityOf(info)
			fmt.Fprintf(&b, "%q %s %d %d %d\n", file, identity, info.Size(), info.ModTime().UnixNano(), changed.UnixNano())
			for _, t := range []time.Time{info.ModTime(), changed} {
				if t.After(v.newest) {
					v.newest = t
				}
			}
		}
	}
	v.files = b.String()
	return v
}
