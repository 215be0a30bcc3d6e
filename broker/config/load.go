package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Environment is the variable that names the configuration where --config does not.
const Environment = "CREDENTIAL_BROKER_CONFIG"

// Places are where a configuration is looked for when nothing names one: a file and a directory, of which either or both may exist.
type Places struct {
	File, Directory string
}

// DefaultPlaces are the places of an installed broker.
func DefaultPlaces() Places {
	return Places{File: "/etc/credential-broker/config.yaml", Directory: "/etc/credential-broker/config.d"}
}

// Find gives the paths for Load: what the flag names, else what the environment names, else those of the default places that exist, of which isDefault tells.
// There is an error if neither default place exists, or one cannot be looked at.
func Find(flag string, getenv func(string) string) (paths []string, isDefault bool, err error) {
	return DefaultPlaces().Find(flag, getenv)
}

// Find is the function Find with these places as the default ones.
func (p Places) Find(flag string, getenv func(string) string) (paths []string, isDefault bool, err error) {
	if flag != "" {
		return []string{flag}, false, nil
	}
	if path := getenv(Environment); path != "" {
		return []string{path}, false, nil
	}
	for _, path := range []string{p.File, p.Directory} {
		if _, err := os.Stat(path); err == nil {
			paths = append(paths, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, true, fmt.Errorf("looking for the configuration: %w", err)
		}
	}
	if len(paths) == 0 {
		return nil, true, fmt.Errorf("no configuration: neither %s nor %s exists; create one of them, or name another with --config or %s", p.File, p.Directory, Environment)
	}
	return paths, true, nil
}

// Load reads a configuration from files, and from the *.json, *.yaml and *.yml files of directories in lexical order, and joins them in that order. An error is of
// type Problems and lists all that is wrong. What is merely odd is in the Config's Warnings.
func Load(paths ...string) (*Config, error) {
	c, problems := Inspect(paths...)
	if len(problems) > 0 {
		return nil, problems
	}
	return c, nil
}

// Inspect is Load for those who list problems: beside them it gives what is sound, the providers with nothing wrong in their own entries, whose backends can then be asked about
// their settings too.
func Inspect(paths ...string) (*Config, Problems) {
	l := newLoader()
	for _, path := range paths {
		files, problem := filesOf(path)
		if problem != nil {
			l.problems = append(l.problems, *problem)
		}
		l.config.Sources = append(l.config.Sources, files...)
	}
	if len(l.config.Sources) == 0 && len(l.problems) == 0 {
		return l.config, Problems{{File: strings.Join(paths, ", "), Message: "no *.json, *.yaml or *.yml file is here; create one, such as config.yaml"}}
	}
	for _, file := range l.config.Sources {
		data, err := readFile(file)
		if err != nil {
			l.problems = append(l.problems, Problem{File: file, Message: err.Error()})
			continue
		}
		l.add(file, data)
	}
	return l.finish()
}

// Files are those that Load would read of a path, in that order.
func Files(path string) ([]string, error) {
	files, problem := filesOf(path)
	if problem != nil {
		return nil, problem
	}
	return files, nil
}

// filesOf is the file itself, or the configuration files of a directory, chosen and ordered as the kubelet chooses and orders its own.
func filesOf(path string) ([]string, *Problem) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, &Problem{File: path, Message: reason(err) + "; create it, or name another configuration with --config or " + Environment}
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, &Problem{File: path, Message: reason(err)}
	}
	var files []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".json", ".yaml", ".yml":
			if !e.IsDir() {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	return files, nil
}

// readFile reads one byte more than the largest file, so that parse sees the excess. A pipe or a device might never end, so it is refused.
func readFile(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file; write the configuration to one")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, errors.New(reason(err))
	}
	return data, nil
}

// reason leaves out the path, which the Problem has already.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// maxProblems are listed at most: nobody reads more, and the kubelet logs them all.
const maxProblems = 200

// loader gathers what the files say.
type loader struct {
	config   *Config
	problems Problems
	visits   int  // values looked at; aliases can make many of a small file
	large    bool // said so already
	seen     map[string]string
	names    map[string]string
}

func newLoader() *loader {
	return &loader{
		config: &Config{
			Timeout:       DefaultTimeout,
			OverlapPolicy: First,
			Log:           Log{Level: "info", Format: "text"},
			Agent:         Agent{IdleTimeout: DefaultIdleTimeout},
			places:        map[string]entryPlace{},
		},
		seen:  map[string]string{},
		names: map[string]string{},
	}
}

func (l *loader) add(file string, data []byte) {
	root, problem := parse(file, data)
	if problem != nil {
		l.problems = append(l.problems, *problem)
		return
	}
	d := decoder{loader: l, file: file}
	d.document(root)
}

func (l *loader) finish() (*Config, Problems) {
	c := l.config
	if len(c.Providers) == 0 && len(l.problems) == 0 {
		l.problems = append(l.problems, Problem{
			File: c.Sources[0], Line: 1, Path: "providers", Message: "at least one provider is required; each has a name, a backend and matchImages",
		})
	}
	if len(l.problems) > 0 {
		c.Providers = slices.DeleteFunc(c.Providers, l.faulty)
		l.problems.sortWithin(c.Sources)
		if more := len(l.problems) - maxProblems; more > 0 {
			last := &l.problems[maxProblems]
			*last = Problem{File: last.File, Line: last.Line, Message: fmt.Sprintf("%d more problems begin here; mend those above first", more)}
			l.problems = l.problems[:maxProblems+1]
		}
		return c, l.problems
	}
	c.cacheBoundSaid = l.seen["maxCacheDuration"] != ""
	c.SetAgent(c.Agent.Socket)
	l.crossWarnings()
	c.Warnings.sortWithin(c.Sources)
	return c, nil
}

// faulty says that something is wrong within the provider's own entry.
func (l *loader) faulty(p *Provider) bool {
	place, ok := l.config.places[p.Name]
	return !ok || slices.ContainsFunc(l.problems, func(problem Problem) bool {
		return problem.File == place.file && (problem.Path == place.path || strings.HasPrefix(problem.Path, place.path+"."))
	})
}
