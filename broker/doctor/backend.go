package doctor

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/trust"
)

func quote(path string) string { return trust.Quote(path) }

func isPermission(err error) bool { return errors.Is(err, fs.ErrPermission) }

// lookAtBackends looks at each provider's backend: its file, its user, what it says of itself, and what it says of its settings.
func (e *examination) lookAtBackends(ctx context.Context) {
	if e.cfg == nil {
		e.waits(whatBackend, whatConfig)
		return
	}
	versions := map[string]string{}
	broken := map[string]string{} // by path: what says so
	for _, p := range e.cfg.Providers {
		what := whatBackend + " of " + p.Name
		if e.backendDir == "" && !filepath.IsAbs(p.Backend) {
			e.waits(what, whatProgram)
			continue
		}
		path, err := e.backendFile(p)
		if err != nil {
			if !e.unseen(what, path, err) {
				text, remedy, _ := cutLast(e.Node.oneLine(err), ": ")
				e.wrong(what, remedy, "%s", text)
			}
			continue
		}
		if err := e.Node.executable(path, p.SHA256); err != nil {
			e.failure(what, "", err)
			continue
		}
		if !e.userIsThere(p, what) {
			continue
		}
		if e.Mounted {
			e.ok(what, "%s; with --root it is not started", path)
			continue
		}
		if first := broken[path]; first != "" {
			e.waits(what, first)
			continue
		}
		if _, known := versions[path]; !known {
			ctx, cancel := context.WithTimeout(ctx, stepTimeout)
			versions[path], err = e.Program.Describe(ctx, e.Node.outside(path))
			cancel()
			if err != nil {
				e.wrong(what, "credential-broker conformance "+quote(path), "%s: %s", path, e.Node.oneLine(err))
				broken[path] = what
				continue
			}
		}
		if e.settingsAreWrong(ctx, p, what) {
			continue
		}
		e.files[p.Name] = path
		if version := versions[path]; version != e.Version && filepath.Dir(path) == filepath.Clean(e.backendDir) {
			e.note(what, "", "%s has version %s, and the broker %s: which works, by the protocol", path, version, e.Version)
		} else {
			e.ok(what, "%s, version %s, and its settings are right", path, version)
		}
	}
}

// backendFile is where a provider's backend is.
func (e *examination) backendFile(p *config.Provider) (string, error) {
	if e.Node.Root == "" {
		return e.Program.Find(e.backendDir, p.Backend)
	}
	path, name := p.Backend, e.Node.outside(p.Backend)
	if !filepath.IsAbs(path) {
		path, name = filepath.Join(e.backendDir, "credential-backend-"+path), path
	}
	if e.Node.exists(path) {
		return path, nil
	}
	_, err := e.Program.Find(e.Node.outside(e.backendDir), name) // which says what is there instead
	return path, err
}

// cutLast cuts at the last separator, behind which errors have what to do.
func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// userIsThere says whether the provider's user is.
func (e *examination) userIsThere(p *config.Provider, what string) bool {
	if p.User == "" {
		return true
	}
	if e.kubelet != nil && e.kubelet.UID > 0 {
		e.wrong(what, "remove `user`, or run the kubelet as root", "%s: user %q: the kubelet runs as user %d, and only root can run a backend as another user", e.Node.reword(p.At), p.User, e.kubelet.UID)
		return false
	}
	if err := e.Node.user(p.User); err != nil {
		e.wrong(what, "useradd --system --shell /usr/sbin/nologin "+quote(p.User), "%s: user %q: %s", e.Node.reword(p.At), p.User, e.Node.oneLine(err))
		return false
	}
	if e.UID > 0 {
		e.unknown(what, "sudo credential-broker doctor", "only root can start it as user %q", p.User)
		return false
	}
	return true
}

func (e *examination) settingsAreWrong(ctx context.Context, p *config.Provider, what string) bool {
	ctx, cancel := context.WithTimeout(ctx, max(p.Timeout, stepTimeout))
	defer cancel()
	environ, _ := e.environ(p)
	problems := e.Program.Settings(ctx, e.cfg, p, environ)
	for _, problem := range problems {
		text := e.Node.oneLine(problem)
		e.wrong(what, "correct it; credential-broker explain and validate help", "%s: %s", e.Node.reword(e.cfg.Position(p.Name, fieldOf(text))), text)
	}
	return len(problems) > 0
}

// fieldOf is the setting that a backend's complaint begins with.
func fieldOf(text string) string {
	if field, _, ok := strings.Cut(text, ": "); ok && strings.HasPrefix(field, "config.") {
		return field
	}
	return "backend"
}

// environ is the environment that a provider's backend gets its own from: the agent's, or that of the program which the kubelet starts; and whose it is. Where it cannot be read, ours has to do.
func (e *examination) environ(p *config.Provider) (environ []string, whose string) {
	if e.agent != nil && e.agent.Reason == "" && !e.Mounted {
		if environ, err := e.Node.environ(e.agent.PID); err == nil {
			return environ, "the agent's"
		}
	}
	if environ := e.kubeletEnviron(p); environ != nil {
		return environ, "the kubelet's"
	}
	return nil, "that of this command"
}

// kubeletEnviron is the environment of what the kubelet starts for a provider: its own, and what the provider's entry adds. Nil: it cannot be read.
func (e *examination) kubeletEnviron(p *config.Provider) []string {
	if e.kubelet == nil || e.kubelet.EnvironErr != nil {
		return nil
	}
	environ := append([]string{}, e.kubelet.Environ...)
	if entry := e.entryOf(p); entry != nil {
		for _, v := range entry.Env {
			environ = append(environ, v.Name+"="+v.Value)
		}
	}
	return environ
}

// entryOf is the entry that serves a provider: the only one, or that of its tokens' audience; nil: there is none.
func (e *examination) entryOf(p *config.Provider) *kubelet.CredentialProvider {
	if len(e.ours) == 1 {
		return &e.ours[0]
	}
	audience := ""
	if p != nil && p.TokenAttributes != nil {
		audience = p.TokenAttributes.ServiceAccountTokenAudience
	}
	if i := slices.IndexFunc(e.ours, func(entry kubelet.CredentialProvider) bool { return audienceOf(entry) == audience }); i >= 0 {
		return &e.ours[i]
	}
	return nil
}

// lookAtRuntime looks at where backends have their sockets.
func (e *examination) lookAtRuntime() {
	const dir, leastBytes, leastFiles = "/run/credential-backends", 1 << 20, 64
	if e.kubelet != nil && e.kubelet.UID > 0 {
		return // it works in a directory of its user's
	}
	path := dir
	if !e.Node.exists(path) {
		path = filepath.Dir(dir)
	}
	bytes, files, readOnly, err := e.Node.room(path)
	switch {
	case err != nil:
		e.unknown(whatRuntime, "", "%s: %s", path, e.Node.oneLine(err))
	case readOnly && e.Mounted: // here, which says nothing of the node
		e.unknown(whatRuntime, "run it on the node itself", "%s is mounted read-only here", path)
	case readOnly:
		e.wrong(whatRuntime, "mount -o remount,rw "+path, "%s is mounted read-only, and backends have their sockets there; /tmp is tried instead", path)
	case bytes < leastBytes || files < leastFiles:
		e.wrong(whatRuntime, "df -h "+path+"; df -i "+path, "%s has room for %d more bytes and %d more files", path, bytes, files)
	case path == dir && e.Node.trusted(path) != nil:
		e.failure(whatRuntime, "", e.Node.trusted(path))
	default:
		e.ok(whatRuntime, "%s", path)
	}
}

// lookAtAgent asks the agent, if there is to be one.
func (e *examination) lookAtAgent(ctx context.Context) {
	if e.cfg == nil {
		e.waits(whatAgent, whatConfig)
		return
	}
	socket := e.cfg.Agent.Socket
	switch {
	case socket == "":
		return
	case e.Mounted:
		e.unknown(whatAgent, "run it on the node itself", "with --root the agent on %s is not asked", socket)
		return
	}
	agent := e.agentOnce(socket)
	switch {
	case agent.Absent && e.cfg.Agent.AutoStart:
		e.note(whatAgent, "", "%s: the next pull starts one", agent.Reason)
		return
	case agent.Absent:
		e.wrong(whatAgent, "systemctl enable --now credential-broker.socket", "%s; each pull starts the backends itself", agent.Reason)
		return
	case agent.Reason != "" && e.UID > 0 && e.runsAsRoot():
		e.unknown(whatAgent, "sudo credential-broker doctor", "%s", agent.Reason)
		return
	case agent.Reason != "":
		e.wrong(whatAgent, "systemctl restart credential-broker; journalctl -u credential-broker -n 20", "%s; each pull starts the backends itself", agent.Reason)
		return
	}
	sound := true
	for _, refused := range agent.Refused {
		sound = false
		e.wrong(whatAgent, "credential-broker validate", "it serves on with the configuration before, as what is on disk is broken: %s", strings.ReplaceAll(refused, "\n", "; "))
	}
	if agent.Version != e.Version {
		e.note(whatAgent, "systemctl reload-or-restart credential-broker", "process %d has version %s, and this program %s: it works, and holds the former until it is started anew", agent.PID, agent.Version, e.Version)
		sound = false
	}
	if agent.Unlocked > 0 {
		e.note(whatAgent, "raise LimitMEMLOCK in credential-broker.service", "%d answers lie in memory that may be swapped out", agent.Unlocked)
	}
	if e.cfg.Agent.Metrics != "" {
		if err := e.Program.Listens(ctx, e.cfg.Agent.Metrics); err != nil {
			e.wrong(whatAgent, "systemctl restart credential-broker; journalctl -u credential-broker -n 20", "nobody serves agent.metrics: %s", e.Node.oneLine(err))
			sound = false
		}
	}
	if sound {
		e.ok(whatAgent, "process %d on %s, version %s", agent.PID, socket, agent.Version)
	}
}

// agentOnce asks the agent, the first time.
func (e *examination) agentOnce(socket string) *Agent {
	if e.agent == nil {
		agent := e.Program.Agent(socket)
		e.agent = &agent
	}
	return e.agent
}

func (e *examination) runsAsRoot() bool { return e.kubelet == nil || e.kubelet.UID == 0 }

// compareEnvirons names the variables that backends take from the agent's environment and that are otherwise in the kubelet's. Values are compared, and not told.
func (e *examination) compareEnvirons() {
	if e.cfg == nil || e.agent == nil || e.agent.Reason != "" {
		return
	}
	theirs, err := e.Node.environ(e.agent.PID)
	if err != nil {
		e.unknown(whatEnviron, "sudo credential-broker doctor", "the agent's environment cannot be read by user %d, to compare it with the kubelet's", e.UID)
		return
	}
	if e.kubeletEnviron(nil) == nil {
		e.unknown(whatEnviron, "sudo credential-broker doctor", "the kubelet's environment cannot be read, to compare it with the agent's")
		return
	}
	var differ []string
	for _, p := range e.cfg.Providers {
		for _, text := range differences(e.Program.Inherited(e.kubeletEnviron(p), p), e.Program.Inherited(theirs, p)) {
			if !slices.Contains(differ, text) {
				differ = append(differ, text)
			}
		}
	}
	if len(differ) == 0 {
		e.ok(whatEnviron, "what backends take of it is the same in the agent's as in the kubelet's")
		return
	}
	slices.Sort(differ)
	e.note(whatEnviron, "systemctl edit credential-broker, and set there with Environment= what backends need", "with the agent backends take the agent's, not the kubelet's: %s", strings.Join(differ, ", "))
}

// personal are variables that every service has its own of, and that no backend needs the kubelet's of.
var personal = []string{"PATH", "HOME", "TMPDIR", "LANG", "TZ"}

func differences(kubelets, agents []string) (names []string) {
	mine, theirs := variables(kubelets), variables(agents)
	for name, value := range mine {
		other, has := theirs[name]
		switch {
		case slices.Contains(personal, name):
		case !has:
			names = append(names, name+" (only the kubelet has it)")
		case other != value:
			names = append(names, name+" (differs)")
		}
	}
	for name := range theirs {
		if _, has := mine[name]; !has && !slices.Contains(personal, name) {
			names = append(names, name+" (only the agent has it)")
		}
	}
	return names
}

func variables(environ []string) map[string]string {
	all := make(map[string]string, len(environ))
	for _, variable := range environ {
		if name, value, ok := strings.Cut(variable, "="); ok {
			all[name] = value
		}
	}
	return all
}

// lookAtLog finds out whether anybody would learn of what goes wrong.
func (e *examination) lookAtLog() {
	if e.cfg == nil {
		e.waits(whatLog, whatConfig)
		return
	}
	file := e.cfg.Log.File
	journal := e.Node.exists("/run/systemd/journal/socket")
	if file != "" {
		at := file
		if !e.Node.exists(file) {
			at = filepath.Dir(file)
		}
		switch info, err := e.Node.stat(at); {
		case err != nil && !e.unseen(whatLog, at, err):
			e.wrong(whatLog, "mkdir -p "+quote(at), "%s: the directory of log.file is not there", at)
			return
		case err != nil:
			return
		case at == file && info.IsDir():
			e.wrong(whatLog, "name a file in log.file", "%s is a directory", at)
			return
		case info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0:
			e.wrong(whatLog, "name a file in log.file", "%s is a pipe or a socket, which could hold up a pull", at)
			return
		}
		if err := e.Node.writable(at); err != nil && !e.Mounted && !errors.Is(err, errors.ErrUnsupported) && (e.UID == 0 || !e.runsAsRoot()) {
			e.wrong(whatLog, "name another file in log.file", "%s cannot be written: %s", at, e.Node.oneLine(err))
			return
		}
	}
	switch {
	case journal && file != "":
		e.ok(whatLog, "the journal, and %s", file)
	case journal:
		e.ok(whatLog, "the journal: journalctl -t credential-broker")
	case file != "":
		e.ok(whatLog, "%s", file)
	default:
		e.note(whatLog, "set log.file in the configuration", "there is no journal here, and the kubelet throws away what a provider says that succeeds")
	}
}

// check has the backends check themselves.
func (e *examination) check(ctx context.Context) {
	switch {
	case e.cfg == nil:
		e.waits(whatCheck, whatConfig)
		return
	case e.Mounted:
		e.unknown(whatCheck, "run it on the node itself", "with --root no backend is started")
		return
	case e.Offline:
		e.unknown(whatCheck, "run it without --offline", "no backend checked itself, as that may need the network")
		return
	}
	e.tellWhoseEnviron()
	say := make([]func(), len(e.cfg.Providers))
	var waiting sync.WaitGroup
	turn := make(chan struct{}, 8) // more processes at once would only wait for each other
	for i, p := range e.cfg.Providers {
		waiting.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			say[i] = e.checkOne(ctx, p)
		})
	}
	waiting.Wait()
	for _, what := range say {
		what()
	}
	if e.Image != "" && !slices.ContainsFunc(e.cfg.Providers, e.isFor) {
		e.note(whatCheck, "credential-broker explain "+e.configFlag()+quote(e.Image), "no provider is for %s: the kubelet pulls it without credentials from here", e.Image)
	}
}

func (e *examination) tellWhoseEnviron() {
	if _, whose := e.environ(nil); whose == "that of this command" {
		e.note(whatCheck, "", "the environment that backends take variables from is that of this command here, since neither the kubelet's nor an agent's could be read")
	}
}

// checkOne has one provider's backend check itself; what it returns says what came of it.
func (e *examination) checkOne(ctx context.Context, p *config.Provider) func() {
	what := whatCheck + " of " + p.Name
	if _, sound := e.files[p.Name]; !sound {
		return func() { e.waits(what, whatBackend+" of "+p.Name) }
	}
	name := e.Image
	switch {
	case name != "" && !e.isFor(p):
		return func() {}
	case name == "":
		name = exampleOf(p)
	}
	if name == "" {
		return func() {
			e.unknown(what, "credential-broker doctor --image HOST/PATH", "its patterns (%s) name no image to try", strings.Join(p.MatchImages, ", "))
		}
	}
	if p.TokenAttributes != nil {
		return func() {
			e.unknown(what, "credential-broker get --request FILE, with a request that has a token", "it works with a pod's service account token, which there is none of here")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	environ, _ := e.environ(p)
	supported, err := e.Program.Check(ctx, e.cfg, p, name, environ)
	return func() {
		switch {
		case err != nil:
			e.wrong(what, "credential-broker get "+e.configFlag()+quote(name), "for %s: %s", name, e.Node.oneLine(err))
		case !supported:
			e.note(what, "credential-broker get "+e.configFlag()+quote(name), "its backend has no check; this asks it for credentials")
		default:
			e.ok(what, "for %s", name)
		}
	}
}

// isFor says whether the provider is for the image that the operator named.
func (e *examination) isFor(p *config.Provider) bool {
	patterns := slices.Clone(p.MatchImages)
	for _, m := range p.Mirrors {
		patterns = append(patterns, m.Source)
	}
	return slices.ContainsFunc(patterns, func(pattern string) bool { return image.Match(pattern, e.Image) })
}

// exampleOf is an image that the provider is for; empty where all of its patterns have wildcards.
func exampleOf(p *config.Provider) string {
	for _, text := range p.MatchImages {
		pattern, err := image.ParsePattern(text)
		if err != nil || strings.ContainsAny(text, `*?[\`) {
			continue
		}
		name := strings.TrimSuffix(text, "/")
		if strings.Trim(pattern.Path(), "/") == "" {
			name += "/app"
		}
		if image.CheckName(name) == nil && pattern.Match(name) {
			return name
		}
	}
	return ""
}
