package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// held is one configuration's answers on the way to a successor.
type held struct {
	Config     string `json:"config"`
	BackendDir string `json:"backendDir"`
	// Answers is what cache.Export wrote.
	Answers []byte `json:"answers"`
}

// Export writes all answers that still hold, with their secrets, for the agent that takes this one's place: so that an upgrade sends nobody to the clouds. It must go through a pipe that
// nobody else has.
func (a *Agent) Export(w io.Writer) error {
	out := json.NewEncoder(w)
	for _, s := range a.sets.snapshot() {
		l := s.loaded.Load()
		if l == nil || !l.kept.acquire() {
			continue
		}
		var answers bytes.Buffer
		err := l.kept.cache.Export(&answers)
		l.release()
		if err == nil {
			err = out.Encode(held{s.path, s.backendDir, answers.Bytes()})
		}
		clear(answers.Bytes())
		if err != nil {
			return fmt.Errorf("hand the answers on: %w", err)
		}
	}
	return nil
}

// Import takes what a predecessor's Export wrote, and leaves out what it does not understand or has no provider for. It returns how many answers it took.
func (a *Agent) Import(ctx context.Context, r io.Reader) (int, error) {
	in := json.NewDecoder(r)
	taken := 0
	for {
		var h held
		err := in.Decode(&h)
		if errors.Is(err, io.EOF) {
			return taken, nil
		}
		if err != nil {
			return taken, errors.New("the answers that were handed on cannot be read") // the error might quote them
		}
		_, l, err := a.sets.use(ctx, place{h.Config, h.BackendDir})
		if err != nil {
			continue // its configuration is gone or broken
		}
		n, err := l.kept.cache.Import(bytes.NewReader(h.Answers), l.cfg.Providers)
		l.release()
		clear(h.Answers)
		taken += n
		if err != nil {
			return taken, err
		}
	}
}
