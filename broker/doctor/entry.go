package doctor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// findConfiguration finds the broker's entries, and reads the configuration that they use: what the operator named, what the entries name, or the default one.
func (e *examination) findConfiguration() {
	if e.all != nil {
		for _, p := range e.all.Providers {
			if e.isOurs(p) {
				e.ours = append(e.ours, p)
			} else {
				e.others = append(e.others, p)
			}
		}
	}
	path, backendDir := e.Config, e.BackendDir
	if len(e.ours) > 0 {
		named, namedDir := configurationOf(e.ours[0])
		if path == "" {
			path = named
		}
		if backendDir == "" {
			backendDir = namedDir
		}
	}
	e.cfgPaths = []string{path}
	if path == "" {
		if e.cfgPaths = e.defaultPaths(); len(e.cfgPaths) == 0 {
			e.wrong(whatConfig, "create "+e.Places.File+" (https://github.com/credential-broker/credential-broker/blob/main/docs/configure.md), or name it with --config", "neither %s nor %s is there", e.Places.File, e.Places.Directory)
			return
		}
	}
	e.readConfiguration(backendDir)
}

// isOurs says whether an entry runs the broker: by what its name leads to or, where it leads nowhere, by its name.
func (e *examination) isOurs(p kubelet.CredentialProvider) bool {
	if file, err := e.Node.follow(filepath.Join(e.flags.binDir, p.Name)); err == nil && strings.TrimSuffix(filepath.Base(file), ".exe") == "credential-broker" {
		return true
	}
	return p.Name == kubelet.EntryName("") || strings.HasPrefix(p.Name, kubelet.EntryName("")+"-")
}

// configurationOf is the configuration and the directory of backends that an entry names; empty for the default ones.
func configurationOf(p kubelet.CredentialProvider) (path, backendDir string) {
	for _, v := range p.Env {
		if v.Name == config.Environment {
			path = v.Value
		}
	}
	if value, ok := argument(p.Args, "config"); ok {
		path = value
	}
	backendDir, _ = argument(p.Args, "backend-dir")
	return path, backendDir
}

// agentOf is the socket that an entry names for an agent.
func agentOf(p kubelet.CredentialProvider) (socket string, named bool) {
	for _, v := range p.Env {
		if v.Name == kubelet.AgentVariable {
			socket, named = v.Value, true
		}
	}
	if value, given := argument(p.Args, "agent"); given {
		socket, named = value, true
	}
	return socket, named
}

// argument is the value of a flag among an entry's arguments.
func argument(args []string, name string) (value string, given bool) {
	for i, arg := range args {
		if arg == "--"+name && i+1 < len(args) {
			value, given = args[i+1], true
		} else if v, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			value, given = v, true
		}
	}
	return value, given
}

func (e *examination) defaultPaths() []string {
	var paths []string
	for _, path := range []string{e.Places.File, e.Places.Directory} {
		if e.Node.exists(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

func (e *examination) readConfiguration(backendDir string) {
	outside := make([]string, len(e.cfgPaths))
	for i, path := range e.cfgPaths {
		info, err := e.Node.stat(path)
		if err != nil {
			if !e.unseen(whatConfig, path, err) {
				e.wrong(whatConfig, "create it, or name another with --config and print the kubelet's entry anew", "%s is not there", path)
			}
			return
		}
		if e.leadsAway(whatConfig, path, info) {
			return
		}
		if err := e.trustedConfiguration(path); err != nil { // before it is read, and told of
			e.failure(whatConfig, "", err)
			return
		}
		outside[i] = e.Node.outside(path)
	}
	cfg, problems := config.Inspect(outside...)
	for _, p := range problems {
		message, remedy, _ := strings.Cut(p.Message, "; ")
		p.File, p.Message = e.Node.inside(p.File), message
		e.wrong(whatConfig, remedy, "%s", p.Error())
	}
	sources := make([]string, len(cfg.Sources))
	for i, source := range cfg.Sources {
		sources[i] = e.Node.inside(source)
	}
	if len(problems) > 0 {
		return
	}
	e.ownBackendDir = cfg.BackendDir
	if backendDir != "" {
		cfg.BackendDir = backendDir
	}
	e.backendDir = cfg.BackendDir
	if e.SocketGiven {
		cfg.SetAgent(e.Socket)
	} else if cfg.Agent.Socket == "" && len(e.ours) > 0 {
		if e.entrySocket, _ = agentOf(e.ours[0]); e.entrySocket != "" {
			cfg.SetAgent(e.entrySocket)
		}
	}
	e.cfg = cfg
	if socket := cfg.Agent.Socket; socket != "" && !e.Mounted {
		e.agentOnce(socket) // early: its environment is that of the backends
	}
	e.ok(whatConfig, "%s: %d %s", strings.Join(sources, ", "), len(cfg.Providers), plural(len(cfg.Providers), "provider", "providers"))
	for _, warning := range append(slices.Clone(cfg.Warnings), cfg.Overlaps()...) {
		e.note(whatConfig, "", "%s", e.Node.reword(warning.Error()))
	}
}

// trustedConfiguration says whether a configuration, a file or a directory of them, is in the right hands.
func (e *examination) trustedConfiguration(path string) error {
	if err := e.Node.trusted(path); err != nil {
		return err
	}
	files, err := config.Files(e.Node.outside(path))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := e.Node.trusted(e.Node.inside(file)); err != nil {
			return err
		}
	}
	return nil
}

// lookAtPrograms looks at the files that the entries' names lead to, and finds where the backends are.
func (e *examination) lookAtPrograms() {
	link := "credential-broker kubelet-config " + e.configFlag() + "--link --bin-dir " + quote(e.flags.binDir)
	if e.installed {
		link = installAgain
	}
	switch {
	case e.all == nil || e.flags.binDir == "":
		e.waits(whatProgram, e.firstWrong(whatKubelet, whatFlags, whatKubeConfig))
	case len(e.ours) == 0:
		e.waits(whatProgram, whatEntry)
	case e.isWrong(whatBinDir):
		e.waits(whatProgram, whatBinDir)
	}
	if e.all != nil && e.flags.binDir != "" && !e.isWrong(whatBinDir) {
		for _, p := range e.ours {
			e.lookAtProgram(filepath.Join(e.flags.binDir, p.Name), link)
		}
	}
	if e.backendDir == "" && !e.Mounted {
		e.backendDir = filepath.Join(filepath.Dir(e.Node.inside(e.Self)), "backends")
	}
	if e.cfg != nil {
		e.cfg.BackendDir = e.Node.outside(e.backendDir)
	}
}

// installAgain has what the DaemonSet's installer keeps put right: it takes a file that it has not written for somebody else's, and a link of another's making would stay with one version.
const installAgain = "have the DaemonSet's pod on this node made anew (kubectl -n NAMESPACE delete pod POD), which puts it right"

// isInstalled says whether the DaemonSet keeps the entries here: by its mark, or by where the links in the bin directory lead.
func (e *examination) isInstalled() bool {
	sources := []string{e.flags.config}
	if entries, err := e.Node.readDir(e.flags.config); err == nil {
		sources = sources[:0]
		for _, entry := range entries {
			sources = append(sources, filepath.Join(e.flags.config, entry.Name()))
		}
	}
	for _, source := range sources {
		if data, err := e.Node.readFile(source); err == nil && bytes.HasPrefix(data, []byte(kubelet.InstallerMark)) {
			return true
		}
	}
	if e.flags.binDir == "" {
		return false
	}
	target, err := e.Node.readLink(filepath.Join(e.flags.binDir, kubelet.EntryName("")))
	return err == nil && filepath.Base(filepath.Dir(target)) == "current" && e.Node.exists(filepath.Join(filepath.Dir(filepath.Dir(target)), "in-use"))
}

func (e *examination) lookAtProgram(path, link string) {
	file, err := e.Node.follow(path)
	if err != nil {
		if !e.unseen(whatProgram, path, err) {
			e.wrong(whatProgram, link, "%s is not there or leads nowhere, so that the kubelet does not start", path)
		}
		return
	}
	if err := e.Node.executable(path, nil); err != nil {
		e.failure(whatProgram, link, err)
		return
	}
	if e.backendDir == "" {
		e.backendDir = filepath.Join(filepath.Dir(file), "backends")
	}
	leads := path
	if file != path {
		leads += " -> " + file
	}
	if e.Mounted {
		e.ok(whatProgram, "%s", leads)
		return
	}
	switch same, err := sameProgram(e.Node.outside(file), e.Self); {
	case err != nil:
		e.unknown(whatProgram, "", "%s: %s", leads, e.Node.oneLine(err))
	case same == asFile:
		e.ok(whatProgram, "%s: this program, version %s", leads, e.Version)
	case same == asCopy:
		e.note(whatProgram, "", "%s is a copy of this program: a new version has to be copied there too", leads)
	case e.installed:
		e.note(whatProgram, quote(file)+" doctor", "%s is the DaemonSet's, and another program, or version, than this one (%s, version %s), which judges here", leads, e.Node.inside(e.Self), e.Version)
	case file == path:
		e.wrong(whatProgram, "install this version there, with its backends, or look with "+quote(path)+" doctor, which is what the kubelet runs",
			"%s is another program, or version, than this one (%s, version %s)", leads, e.Node.inside(e.Self), e.Version)
	default:
		e.wrong(whatProgram, quote(e.Node.inside(e.Self))+strings.TrimPrefix(link, "credential-broker")+", or look with "+quote(file)+" doctor, which is what the kubelet runs",
			"%s is another program, or version, than this one (%s, version %s)", leads, e.Node.inside(e.Self), e.Version)
	}
}

// sameness is how two paths are one program.
type sameness int

const (
	different sameness = iota
	asCopy
	asFile
)

func sameProgram(a, b string) (sameness, error) {
	x, err := os.Stat(a)
	if err != nil {
		return different, err
	}
	y, err := os.Stat(b)
	switch {
	case err != nil:
		return different, err
	case os.SameFile(x, y):
		return asFile, nil
	case x.Size() != y.Size():
		return different, nil
	}
	one, err := os.ReadFile(a)
	if err != nil {
		return different, err
	}
	two, err := os.ReadFile(b)
	if err != nil {
		return different, err
	}
	if bytes.Equal(one, two) {
		return asCopy, nil
	}
	return different, nil
}

// configFlag hands the configuration on to a command, where it is not the default one; it ends with a space.
func (e *examination) configFlag() string {
	if len(e.cfgPaths) == 1 && e.cfgPaths[0] != e.Places.File && e.cfgPaths[0] != e.Places.Directory {
		return "--config " + quote(e.cfgPaths[0]) + " "
	}
	return ""
}

// compareEntries compares the entries with those that kubelet-config would print now.
func (e *examination) compareEntries() {
	switch {
	case e.all == nil:
		e.waits(whatEntry, e.firstWrong(whatKubelet, whatFlags, whatKubeConfig))
		return
	case e.cfg == nil && len(e.ours) > 0:
		e.waits(whatEntry, whatConfig)
		return
	}
	if err := e.findWanted(); err != nil {
		e.wrong(whatEntry, "", "%s", e.Node.oneLine(err))
		return
	}
	if len(e.ours) == 0 {
		e.wrong(whatEntry, e.printed("", ""), "%s has no entry of the broker's; it has %s", e.flags.config, names(e.all.Providers))
		return
	}
	matched := map[string]bool{}
	for _, want := range e.wanted {
		i := slices.IndexFunc(e.ours, func(p kubelet.CredentialProvider) bool { return audienceOf(p) == want.Audience && !matched[p.Name] })
		if i < 0 {
			who := "the providers without tokenAttributes"
			if want.Audience != "" {
				who = fmt.Sprintf("audience %q", want.Audience)
			}
			e.wrong(whatEntry, e.printed(want.Name, ""), "there is no entry for %s (%s)", who, strings.Join(want.Serves, ", "))
			continue
		}
		matched[e.ours[i].Name] = true
		e.compareEntry(e.ours[i], want)
	}
	for _, p := range e.ours {
		if !matched[p.Name] {
			e.wrong(whatEntry, "remove it, then "+e.restart(), "%s: entry %s serves no provider of the configuration (audience %q)", at(p), p.Name, audienceOf(p))
		}
	}
}

// findWanted finds what kubelet-config would print now.
func (e *examination) findWanted() (err error) {
	if e.cfg == nil {
		return nil
	}
	options := kubelet.EntryOptions{Single: e.isSingle()}
	if e.configFlag() != "" {
		options.ConfigPath = e.cfgPaths[0]
	}
	if e.wanted, _, err = kubelet.Entries(e.cfg, options); err != nil && options.Single { // there is more than one audience by now
		options.Single = false
		e.wanted, _, err = kubelet.Entries(e.cfg, options)
	}
	return err
}

// isSingle says whether the one entry serves providers with and without tokens, as --single makes it.
func (e *examination) isSingle() bool {
	if len(e.ours) != 1 {
		return false
	}
	_, given := argument(e.ours[0].Args, "audience")
	return !given && e.ours[0].TokenAttributes != nil && slices.ContainsFunc(e.cfg.Providers, func(p *config.Provider) bool { return p.TokenAttributes != nil })
}

// audienceOf is that of the tokens an entry's broker is for.
func audienceOf(p kubelet.CredentialProvider) string {
	if audience, given := argument(p.Args, "audience"); given {
		return audience
	}
	if p.TokenAttributes != nil {
		return p.TokenAttributes.ServiceAccountTokenAudience
	}
	return ""
}

// printed is the command that mends an entry: the links that are missing, since a kubelet does not start with an entry whose program is not there; then the whole file, in one step, if all of it is ours.
// File is where the entry stands; empty: nowhere yet.
func (e *examination) printed(name, file string) string {
	if e.installed {
		return installAgain + "; then " + e.restart()
	}
	again := "credential-broker kubelet-config " + e.entryFlags()
	link := ""
	if slices.ContainsFunc(e.wanted, func(want kubelet.Entry) bool { return !e.Node.exists(filepath.Join(e.flags.binDir, want.Name)) }) {
		link = again + "--link --bin-dir " + quote(e.flags.binDir)
	}
	if len(e.others) == 0 && len(e.all.Sources) == 1 {
		if link != "" {
			link += " && "
		}
		file = e.all.Sources[0]
		return link + again + ">" + quote(file+".new") + " && mv " + quote(file+".new") + " " + quote(file) + " && " + e.restart()
	}
	if name == "" {
		name = "the entry"
	}
	if link != "" {
		link += "; then "
	}
	switch {
	case file != "":
	case len(e.all.Sources) == 1:
		file = e.all.Sources[0]
	default:
		file = "a file of its own in " + e.flags.config
	}
	return link + "put " + name + ", as `" + strings.TrimSpace(again) + "` prints it, into " + file + "; then " + e.restart()
}

// entryFlags are those with which kubelet-config prints what is there, where it is right; they end with a space.
func (e *examination) entryFlags() string {
	flags := e.configFlag()
	add := func(name, value string) { flags += "--" + name + " " + quote(value) + " " }
	backendDir := e.BackendDir
	if backendDir == "" && len(e.ours) > 0 {
		_, backendDir = configurationOf(e.ours[0])
	}
	if backendDir != "" {
		add("backend-dir", backendDir)
	}
	if e.SocketGiven {
		add("agent", e.Socket)
	} else if e.entrySocket != "" {
		add("agent", e.entrySocket)
	}
	if e.isSingle() && len(e.wanted) == 1 {
		flags += "--single "
	}
	if len(e.ours) == 1 && len(e.wanted) == 1 {
		is, want := e.ours[0].MatchImages, e.wanted[0].MatchImages
		if slices.ContainsFunc(is, func(pattern string) bool { return !slices.Contains(want, pattern) }) { // wider than need be, so somebody wanted it so
			for _, pattern := range want {
				if !covers(is, pattern) {
					is = append(slices.Clone(is), pattern)
				}
			}
			for _, pattern := range is {
				add("match", pattern)
			}
		}
	}
	return flags
}

// covers says whether an entry with these patterns is asked for all images of this one.
func covers(matchImages []string, pattern string) bool {
	return len(kubelet.Uncovered(matchImages, []*config.Provider{{MatchImages: []string{pattern}}})) == 0
}

// compareEntry says what differs from the entry that would be printed, and matters.
func (e *examination) compareEntry(is kubelet.CredentialProvider, want kubelet.Entry) {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	var providers []*config.Provider
	for _, p := range e.cfg.Providers {
		if slices.Contains(want.Serves, p.Name) {
			providers = append(providers, p)
		}
	}
	for _, missing := range kubelet.Uncovered(is.MatchImages, providers) {
		say("no pattern of matchImages covers %q of provider %q, so that the kubelet never asks for such images", missing.Pattern, missing.Provider)
	}
	if path, _ := configurationOf(is); !e.samePlace(path, want) {
		say("it uses the configuration %s, not %s", orDefault(path), strings.Join(e.cfgPaths, ", "))
	}
	if dir := e.backendDirOf(is); e.BackendDir != "" && !e.sameFile(dir, e.BackendDir) {
		say("it takes backends from %s, not %s", dir, e.BackendDir)
	}
	if wantAudience, given := argument(want.Args, "audience"); given {
		if audience, has := argument(is.Args, "audience"); !has || audience != wantAudience {
			say("its args lack --audience %q, so that it asks providers of other entries too", wantAudience)
		}
	}
	wrong = append(wrong, tokenDifferences(is.TokenAttributes, want.TokenAttributes)...)
	socket, named := agentOf(is)
	switch {
	case !named || socket == e.cfg.Agent.Socket:
	case socket == "":
		e.note(whatEntry, "", "%s: entry %s: it asks no agent, though the configuration has one", at(is), is.Name)
	default:
		say("it asks an agent on %q, and the configuration's agent.socket is %q", socket, e.cfg.Agent.Socket)
	}
	for _, text := range wrong {
		e.wrong(whatEntry, e.printed(is.Name, is.File), "%s: entry %s: %s", at(is), is.Name, text)
	}
	if !named && e.cfg.Agent.Socket != "" {
		e.note(whatEntry, e.printed(is.Name, is.File), "%s: entry %s: its env has no %s, so that each pull reads the configuration before it asks the agent", at(is), is.Name, kubelet.AgentVariable)
	}
	if is.APIVersion != want.APIVersion {
		e.note(whatEntry, e.printed(is.Name, is.File), "%s: entry %s: its apiVersion is %s; %s works in every kubelet since 1.26", at(is), is.Name, is.APIVersion, want.APIVersion)
	}
	if len(wrong) == 0 {
		e.ok(whatEntry, "%s: entry %s covers %s", at(is), is.Name, strings.Join(want.Serves, ", "))
	}
}

// samePlace says whether an entry's configuration is the one that was read.
func (e *examination) samePlace(path string, want kubelet.Entry) bool {
	wanted, given := argument(want.Args, "config")
	if path == "" || !given {
		return path == "" && !given || path != "" && slices.Contains(e.cfgPaths, path)
	}
	return e.sameFile(path, wanted)
}

// sameFile says whether two paths lead to the same.
func (e *examination) sameFile(one, other string) bool {
	a, err := e.Node.follow(one)
	b, err2 := e.Node.follow(other)
	return one == other || err == nil && err2 == nil && a == b
}

// backendDirOf is where an entry's broker has its backends: what it names, what the configuration does, or beside the program.
func (e *examination) backendDirOf(is kubelet.CredentialProvider) string {
	if _, dir := configurationOf(is); dir != "" {
		return dir
	}
	if e.ownBackendDir != "" {
		return e.ownBackendDir
	}
	file, err := e.Node.follow(filepath.Join(e.flags.binDir, is.Name))
	if err != nil {
		return orDefault("")
	}
	return filepath.Join(filepath.Dir(file), "backends")
}

func orDefault(path string) string {
	if path == "" {
		return "in the default place"
	}
	return path
}

// tokenDifferences are those that keep a provider from what it needs, or share an answer further than it may be.
func tokenDifferences(is, want *kubelet.TokenAttributes) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	switch {
	case is == nil && want == nil:
		return nil
	case is == nil:
		return []string{fmt.Sprintf("it has no tokenAttributes, so that no token for %q comes with the request", want.ServiceAccountTokenAudience)}
	case want == nil:
		return []string{"it has tokenAttributes, and its providers need no token: without one the kubelet does not run the broker"}
	}
	if is.ServiceAccountTokenAudience != want.ServiceAccountTokenAudience {
		say("its tokens are for %q, not %q", is.ServiceAccountTokenAudience, want.ServiceAccountTokenAudience)
	}
	if is.CacheType != want.CacheType && want.CacheType == string(config.CacheTypeToken) {
		say("its cacheType is %s, and a provider's is Token: answers for one token are given to others", is.CacheType)
	}
	if is.RequireServiceAccount != nil && *is.RequireServiceAccount && !*want.RequireServiceAccount {
		say("it has requireServiceAccount: true, so that pods without a service account are not served")
	}
	known := slices.Concat(is.RequiredServiceAccountAnnotationKeys, is.OptionalServiceAccountAnnotationKeys)
	for _, key := range slices.Concat(want.RequiredServiceAccountAnnotationKeys, want.OptionalServiceAccountAnnotationKeys) {
		if !slices.Contains(known, key) {
			say("the annotation %q does not come with the request", key)
		}
	}
	for _, key := range is.RequiredServiceAccountAnnotationKeys {
		if !slices.Contains(want.RequiredServiceAccountAnnotationKeys, key) {
			say("the annotation %q is required, so that service accounts without it are not served", key)
		}
	}
	return wrong
}

// lookAtTokens says what else tokens need.
func (e *examination) lookAtTokens() {
	var audiences []string
	add := func(audience string) {
		if !slices.Contains(audiences, audience) {
			audiences = append(audiences, audience)
		}
	}
	for _, p := range e.ours {
		if p.TokenAttributes != nil {
			add(p.TokenAttributes.ServiceAccountTokenAudience)
		}
	}
	if e.cfg != nil { // whose entries are to be printed
		for _, p := range e.cfg.Providers {
			if p.TokenAttributes != nil {
				add(p.TokenAttributes.ServiceAccountTokenAudience)
			}
		}
	}
	if len(audiences) == 0 {
		return
	}
	args := []string(nil)
	if e.kubelet != nil {
		args = e.kubelet.Args
	}
	gate := e.Node.tokensGate(args)
	switch {
	case e.olderThan(32): // the configuration is read strictly only since then
		e.wrong(whatTokens, "upgrade the kubelet to 1.34 or later, or remove tokenAttributes and print the entry anew", "%s does not know tokenAttributes, passes over them, and runs the broker without a token", e.version)
	case e.olderThan(34):
		e.wrong(whatTokens, "upgrade the kubelet to 1.34 or later, or remove tokenAttributes and print the entry anew", "%s does not know tokenAttributes as they are since 1.34, and does not start with them", e.version)
	case gate == "false":
		e.wrong(whatTokens, "remove "+gateTokens+"=false from the kubelet's feature gates; then "+e.restart(), "the feature gate %s is false, and the kubelet does not start with tokenAttributes", gateTokens)
	default:
		e.note(whatTokens, "credential-broker kubelet-config "+e.configFlag()+"--rbac | kubectl apply -f -",
			"whether the cluster lets nodes ask for tokens for %s cannot be seen from a node; if it does not, the kubelet's log has \"not authorized to request tokens\"", strings.Join(audiences, ", "))
	}
}

// lookAtOthers names the entries of other programs that are asked for the same images as ours.
func (e *examination) lookAtOthers() {
	if e.all == nil || len(e.ours) == 0 {
		return
	}
	for _, other := range e.others {
		if err := e.Node.executable(filepath.Join(e.flags.binDir, other.Name), nil); err != nil && !e.isWrong(whatBinDir) && !isPermission(err) {
			text, remedy := e.Node.split(err, "install it, or remove the entry; then "+e.restart())
			e.wrong(whatOthers, remedy, "%s: entry %s: %s", at(other), other.Name, text)
		}
		for _, ours := range e.ours {
			if a, b, ok := overlap(other, ours); ok {
				e.note(whatOthers, "credential-broker migrate "+quote(e.flags.config)+" --bin-dir "+quote(e.flags.binDir),
					"%s: %q of entry %s overlaps %q of %s: the kubelet asks both, one after the other, and adds up their answers", at(other), a, other.Name, b, ours.Name)
			}
		}
	}
}

func overlap(a, b kubelet.CredentialProvider) (string, string, bool) {
	for _, x := range a.MatchImages {
		for _, y := range b.MatchImages {
			p, err := image.ParsePattern(x)
			q, err2 := image.ParsePattern(y)
			if err == nil && err2 == nil && image.Overlap(p, q) {
				return x, y, true
			}
		}
	}
	return "", "", false
}

func at(p kubelet.CredentialProvider) string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

func names(providers []kubelet.CredentialProvider) string {
	all := make([]string, len(providers))
	for i, p := range providers {
		all[i] = p.Name
	}
	return strings.Join(all, ", ")
}
