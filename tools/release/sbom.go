package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// sbom is the bill of materials of an archive, in SPDX 2.3: the archive contains executables, and an executable depends on the modules that it says are linked into it. Files are not listed, so
// nothing here is what SPDX calls analysed.
func (r *release) sbom(file string, packed []byte, programs []*program, linked []*linkedModule) ([]byte, error) {
	sum := sha256.Sum256(packed)
	archive := r.ownPackage("archive", name, "ARCHIVE")
	archive.PackageFileName = file
	archive.PackageChecksums = []common.Checksum{checksum(packed)}
	archive.PackageDownloadLocation = fmt.Sprintf("%s/releases/download/v%s/%s", source, r.version, file)
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: file,
		// It has to be unique, and is so for as long as the archive is.
		DocumentNamespace: fmt.Sprintf("%s/spdx/%s-%s", source, file, hex.EncodeToString(sum[:])),
		CreationInfo: &spdx.CreationInfo{
			Created:  r.time.Format("2006-01-02T15:04:05Z"),
			Creators: []common.Creator{{CreatorType: "Organization", Creator: name}, {CreatorType: "Tool", Creator: name + "-release-" + r.version}},
		},
		Packages: []*spdx.Package{archive},
	}
	relate := func(a common.ElementID, how string, b common.ElementID) {
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{
			RefA: common.MakeDocElementID("", string(a)), Relationship: how, RefB: common.MakeDocElementID("", string(b)),
		})
	}
	relate("DOCUMENT", common.TypeRelationshipDescribe, archive.PackageSPDXIdentifier)
	ids := map[string]common.ElementID{}
	for i, m := range linked {
		ids[m.purl()] = elementID(fmt.Sprintf("module-%d-%s", i, m.path))
	}
	for _, p := range programs {
		// Its number keeps it unique: the names of two programs may differ in what an identifier cannot hold.
		executable := r.ownPackage(fmt.Sprintf("program-%d-%s", len(doc.Packages), p.command()), p.command(), "APPLICATION")
		executable.PackageFileName = p.path
		executable.PackageChecksums = []common.Checksum{checksum(p.content)}
		executable.PackageDownloadLocation = fmt.Sprintf("git+%s@%s#cmd/%s", source, r.commit, p.command())
		executable.PackageSourceInfo = fmt.Sprintf("built by %s for %s/%s from commit %s", p.info.GoVersion, p.setting("GOOS"), p.setting("GOARCH"), r.commit)
		executable.PackageExternalReferences = purl("pkg:golang/" + project + "@v" + r.version + "#cmd/" + p.command())
		doc.Packages = append(doc.Packages, executable)
		relate(archive.PackageSPDXIdentifier, common.TypeRelationshipContains, executable.PackageSPDXIdentifier)
		for _, m := range modulesOf(p) {
			relate(executable.PackageSPDXIdentifier, common.TypeRelationshipDependsOn, ids[m.purl()])
		}
	}
	for _, m := range linked {
		doc.Packages = append(doc.Packages, modulePackage(ids[m.purl()], m))
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(doc)
	return b.Bytes(), err
}

// ownPackage is one of this project's.
func (r *release) ownPackage(id, called, purpose string) *spdx.Package {
	return &spdx.Package{
		PackageName: called, PackageSPDXIdentifier: elementID(id), PackageVersion: r.version, PackageSupplier: &common.Supplier{SupplierType: "Organization", Supplier: name},
		PackageHomePage: source, PackageLicenseConcluded: "NOASSERTION", PackageLicenseDeclared: "Apache-2.0", PackageCopyrightText: "NOASSERTION", PrimaryPackagePurpose: purpose,
	}
}

func modulePackage(id common.ElementID, m *linkedModule) *spdx.Package {
	p := &spdx.Package{
		PackageName: m.path, PackageSPDXIdentifier: id, PackageVersion: m.version, PackageSupplier: &common.Supplier{Supplier: "NOASSERTION"}, PackageLicenseConcluded: "NOASSERTION",
		PackageLicenseDeclared: m.declared(), PackageCopyrightText: "NOASSERTION", PrimaryPackagePurpose: "LIBRARY", PackageExternalReferences: purl(m.purl()),
		PackageDownloadLocation: fmt.Sprintf("https://proxy.golang.org/%s/@v/%s.zip", escaped(m.path), m.version),
	}
	if m.path == standard {
		p.PackageDownloadLocation = "https://go.dev/dl/go" + m.version + ".src.tar.gz"
	}
	if m.sum != "" {
		p.PackageSourceInfo = "go.sum: " + m.sum
	}
	var others []string
	for _, f := range m.licences {
		if expression := f.expression(); isLicence(f.path) && strings.Contains(f.path, "/") && expression != "" && expression != p.PackageLicenseDeclared {
			others = append(others, f.path+": "+expression)
		}
	}
	if len(others) != 0 {
		p.PackageLicenseComments = "licences of parts, which need not be linked: " + strings.Join(others, ", ")
	}
	return p
}

// checksum is the SHA-256, as SPDX writes it.
func checksum(content []byte) common.Checksum {
	sum := sha256.Sum256(content)
	return common.Checksum{Algorithm: common.SHA256, Value: hex.EncodeToString(sum[:])}
}

func purl(locator string) []*spdx.PackageExternalReference {
	return []*spdx.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: locator}}
}

var notOfAnID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// elementID is an identifier within a document: letters, digits, dots and hyphens.
func elementID(text string) common.ElementID {
	return common.ElementID(notOfAnID.ReplaceAllString(text, "-"))
}
