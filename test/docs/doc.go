// Package docs runs what the documents show: README.md, CONTRIBUTING.md, SECURITY.md, docs/**/*.md and the READMEs below examples/. It needs the executables that
// `make build` puts into bin/. Run it with -count=1, as `make test` does: the test cache knows nothing of documents and executables.
//
// # How to write a block
//
// Every fenced block names its language. What happens to it depends on that:
//
//	console   commands and what they print. A line that begins with "$ " is a command ("> " continues it, as in a shell); what follows is the expected output, standard
//	          error included. "..." on a line of its own stands for any number of lines, "..." within a line for any text; runs of spaces count as one. A command that exits
//	          with another status than 0 fails the test, unless the next command is `echo $?`, which shows the reader the status too.
//	sh        commands without their output; each must exit with 0.
//	yaml      BrokerConfig: loaded strictly and, if the document is in a sandbox (below), checked with `credential-broker validate`; warnings are fine. CredentialProviderConfig: read by
//	          the kubelet's rules. Kubernetes objects and fragments: must be YAML.
//	json      CredentialProviderRequest and CredentialProviderResponse: decoded as the broker and the kubelet do. Anything else: must be JSON.
//	go        must be formatted, and compile if it is a whole file; a fragment must parse. One written to a file (below) is also built by the console blocks that follow.
//	protobuf  must occur in proto/backend/v1/backend.proto, comments and space aside.
//	hcl       policies and configurations of Vault's: the commands show what they are worth.
//	text      pictures and the like: not run.
//
// After the language there may be:
//
//	file=PATH      write the block to PATH, for the blocks that follow. mode=0700 sets its mode.
//	in-code        of text: error messages. Each line, "..." aside, occurs in the Go code outside of tests.
//	wrong          of yaml: a configuration that is shown because it is wrong; loading it must fail.
//	printed        of yaml: a CredentialProviderConfig; what `credential-broker kubelet-config` prints at this point, comments aside.
//	norun="why"    it cannot run here. The test counts those and prints why.
//
// All blocks of one document share one sandbox and one shell, from top to bottom: an empty directory that is the working directory, with bin/ on PATH. Absolute
// paths below /etc, /usr/libexec, /usr/bin, /opt, /var and /run are taken to be below the sandbox, in commands, files and outputs alike; so nothing needs root, and
// /etc/credential-broker/config.yaml is the default configuration (which CREDENTIAL_BROKER_CONFIG brings about; the --config that kubelet-config then prints is
// taken out of the output). Files that a BrokerConfig names, and that are not there, are made. $REPO is the clone. What a document needs without wanting to show it stands in an HTML comment that
// begins with "<!-- run" and holds shell commands.
//
// The documents that withVault names have a Vault server of their own, which https://vault.example:8200 stands for, with its CLI: see addVault.
//
// A document that says what every error of a package means is held against the package's code, both ways: see errorTables.
//
// Links between the documents, and to headings in them, are checked too.
package docs
