package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	attestationv1 "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	sumsFile       = "SHA256SUMS"
	provenanceFile = "provenance.intoto.json"

	predicateType = "https://slsa.dev/provenance/v1"
	// buildType is the page that says what the parameters mean, and builder who it was that built: somebody, by hand. Where CI signs, it says who it is itself.
	buildType = source + "/blob/main/docs/release.md"
	builder   = source + "/blob/main/docs/release.md#provenance"
)

// sums writes what holds for all files of a release: the provenance, whose subjects they are, and their checksums, its own among them.
func (r *release) sums(ctx context.Context, built []string) error {
	for _, file := range []string{sumsFile, provenanceFile} {
		if err := os.RemoveAll(filepath.Join(r.out, file)); err != nil {
			return err
		}
	}
	var programs []*program
	for _, dir := range built {
		some, err := readPrograms(ctx, dir, r.repo)
		if err != nil {
			return err
		}
		programs = append(programs, some...)
	}
	digests, err := digestsOf(r.out)
	if err != nil {
		return err
	}
	statement, err := r.provenance(programs, digests)
	if err != nil {
		return fmt.Errorf("the provenance: %w", err)
	}
	if err := r.write(provenanceFile, statement); err != nil {
		return err
	}
	if digests, err = digestsOf(r.out); err != nil {
		return err
	}
	var list bytes.Buffer
	for _, d := range digests {
		fmt.Fprintf(&list, "%s  %s\n", d.sha256, d.file)
	}
	return r.write(sumsFile, list.Bytes())
}

type digest struct{ file, sha256 string }

// digestsOf are those of the files in a folder, sorted by name. A release is flat: a folder in it would be left out by whoever publishes it.
func digestsOf(dir string) ([]digest, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []digest
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return nil, fmt.Errorf("%s: is no regular file, and a release has nothing else", filepath.Join(dir, e.Name()))
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(content)
		all = append(all, digest{e.Name(), hex.EncodeToString(sum[:])})
	}
	return all, nil
}

// provenance is an in-toto statement with SLSA's predicate. When it was built and by which run is left out: the same commit gives the same bytes.
func (r *release) provenance(programs []*program, digests []digest) ([]byte, error) {
	external, err := structpb.NewStruct(map[string]any{"source": "git+" + source + "@" + r.commit, "version": r.version, "command": "make release VERSION=" + r.version})
	if err != nil {
		return nil, err
	}
	platforms := map[string]any{}
	for _, p := range programs {
		settings := map[string]any{}
		for _, s := range p.info.Settings {
			settings[s.Key] = s.Value
		}
		platforms[p.setting("GOOS")+"/"+p.setting("GOARCH")] = settings
	}
	internal, err := structpb.NewStruct(map[string]any{"go": programs[0].info.GoVersion, "SOURCE_DATE_EPOCH": fmt.Sprint(r.time.Unix()), "settings": platforms})
	if err != nil {
		return nil, err
	}
	materials, err := r.materials(programs)
	if err != nil {
		return nil, err
	}
	claim := &provenancev1.Provenance{
		BuildDefinition: &provenancev1.BuildDefinition{BuildType: buildType, ExternalParameters: external, InternalParameters: internal, ResolvedDependencies: materials},
		RunDetails:      &provenancev1.RunDetails{Builder: &provenancev1.Builder{Id: builder}},
	}
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	predicate := &structpb.Struct{}
	encoded, err := protojson.Marshal(claim)
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(encoded, predicate); err != nil {
		return nil, err
	}
	statement := &attestationv1.Statement{Type: attestationv1.StatementTypeUri, PredicateType: predicateType, Predicate: predicate}
	for _, d := range digests {
		statement.Subject = append(statement.Subject, &attestationv1.ResourceDescriptor{Name: d.file, Digest: map[string]string{"sha256": d.sha256}})
	}
	if err := statement.Validate(); err != nil {
		return nil, err
	}
	if encoded, err = protojson.Marshal(statement); err != nil {
		return nil, err
	}
	// protojson varies its spaces from build to build, on purpose.
	var even bytes.Buffer
	if err := json.Indent(&even, encoded, "", "  "); err != nil {
		return nil, err
	}
	even.WriteByte('\n')
	return even.Bytes(), nil
}

// materials are what the executables were made of: the commit, Go, and each module with the digest that go.sum has.
func (r *release) materials(programs []*program) ([]*attestationv1.ResourceDescriptor, error) {
	all := []*attestationv1.ResourceDescriptor{
		{Uri: "git+" + source + "@" + r.commit, Digest: map[string]string{"gitCommit": r.commit}},
		{Name: programs[0].info.GoVersion, Uri: "https://go.dev/dl/"},
	}
	for _, m := range uniqueModules(programs) {
		if m.path == standard {
			continue // comes with Go
		}
		hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:"))
		if err != nil || len(hash) != sha256.Size {
			return nil, fmt.Errorf("%s %s: no checksum of go.sum: %q", m.path, m.version, m.sum)
		}
		all = append(all, &attestationv1.ResourceDescriptor{Uri: m.purl(), Digest: map[string]string{"dirHash": hex.EncodeToString(hash)}})
	}
	return all, nil
}
