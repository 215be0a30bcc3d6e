package cache

import (
	"fmt"
	"os"
	"sync"

	"github.com/credential-broker/credential-broker/proto/secret"
)

// sealed keeps a few secrets in one piece of memory that the garbage collector neither copies nor leaves behind: outside of Go's heap where the system allows it, not swapped out, not part of a core dump,
// and cleared when it is wiped. A secret leaves it only as a copy that is made under its own lock, so nothing can point into memory that is gone; asking a wiped one gives nothing.
type sealed struct {
	mu   sync.Mutex
	data []byte
	ends []int // where each secret ends in data
	memory
}

// memory says what kind of memory it is.
type memory struct {
	mapped bool // of its own pages, to be given back to the system
	locked bool // never swapped out
}

// Format implements fmt.Formatter: every verb prints the mask.
func (*sealed) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(secret.Mask)) }

// seal copies the secrets into memory of their own. The strings that they come from are garbage for Go's collector; nothing can clear those.
func seal(secrets ...secret.Secret) *sealed {
	s := &sealed{ends: make([]int, len(secrets))}
	size := 0
	for i, one := range secrets {
		size += len(one)
		s.ends[i] = size
	}
	if size == 0 {
		return s
	}
	s.data, s.memory = allocate(size)
	at := 0
	for _, one := range secrets {
		at += copy(s.data[at:], one)
	}
	return s
}

// open returns a copy of the secret at an index, and false once all of them have been wiped.
func (s *sealed) open(index int) (secret.Secret, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends == nil {
		return "", false
	}
	from := 0
	if index > 0 {
		from = s.ends[index-1]
	}
	return secret.Secret(s.data[from:s.ends[index]]), true
}

// wipe clears the secrets and gives their memory back. It may be called more than once.
func (s *sealed) wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends == nil {
		return
	}
	clear(s.data)
	release(s.data, s.memory)
	s.data, s.ends, s.memory = nil, nil, memory{}
}

// size is what it takes of the machine's memory, in bytes: whole pages where it has its own.
func (s *sealed) size() int {
	if !s.mapped {
		return len(s.data)
	}
	page := os.Getpagesize()
	return (len(s.data) + page - 1) / page * page
}
