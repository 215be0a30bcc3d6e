package fast

// Arguments of the program that the early path goes on with.
type Arguments struct {
	Config, BackendDir string
	Audience           string
	HasAudience        bool // --audience was given; the empty one is an audience too
	Agent              string
	HasAgent           bool // --agent was given; the empty one means: no agent
}

// ParseArguments reads a command line as /proc/self/cmdline has it: each argument, the program's name first, ends with a zero byte. ok says that all of it is understood, and as the program's own
// command line parser understands it; for everything else, subcommands and mistakes included, ok is false and main decides.
func ParseArguments(cmdline string) (a Arguments, ok bool) {
	program, rest, ok := cutArgument(cmdline)
	if !ok || isDockerHelper(program) {
		return Arguments{}, false
	}
	for rest != "" {
		var flag, value string
		if flag, rest, ok = cutArgument(rest); !ok {
			return Arguments{}, false
		}
		name, value, joined := cut(flag, '=')
		if !joined {
			// The next argument is the value whatever it looks like, a flag included: so does pflag.
			if value, rest, ok = cutArgument(rest); !ok {
				return Arguments{}, false
			}
		}
		switch name {
		case "--config":
			a.Config = value
		case "--backend-dir":
			a.BackendDir = value
		case "--audience":
			a.Audience, a.HasAudience = value, true
		case "--agent":
			a.Agent, a.HasAgent = value, true
		default:
			return Arguments{}, false
		}
	}
	return a, true
}

// isDockerHelper says that the program is called by the name under which it speaks Docker's protocol, and reads no kubelet's request.
func isDockerHelper(program string) bool {
	const name = "docker-credential-broker"
	start := len(program) - len(name)
	return start >= 0 && program[start:] == name && (start == 0 || program[start-1] == '/')
}

func cutArgument(cmdline string) (argument, rest string, ok bool) { return cut(cmdline, 0) }

// cut is strings.Cut.
func cut(s string, separator byte) (before, after string, found bool) {
	for i := range len(s) {
		if s[i] == separator {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}
