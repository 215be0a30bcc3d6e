//go:build amd64 || arm64 || loong64 || riscv64

package fast

import "unsafe"

// What the early path asks of the kernel. Package syscall has all of this, and wants Go's runtime, and the initialisation of what it imports, for much of it. The linker takes these two functions of it as
// they are; syscall marks both as there for callers outside. The first needs nothing else.

// systemCall is a system call that returns at once.
//
//go:linkname systemCall syscall.RawSyscall6
func systemCall(number, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, err errno)

// schedulerCall is a system call during which the runtime gives the processor to others.
//
//go:linkname schedulerCall syscall.Syscall6
func schedulerCall(number, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, err errno)

// blockingCall is a system call that may take long. What it is given pointers to stays where it is that long.
//
//go:noinline
func blockingCall(number, a1 uintptr, p unsafe.Pointer, a3, a4 uintptr, q unsafe.Pointer) (r uintptr, err errno) {
	if running {
		r, _, err = schedulerCall(number, a1, uintptr(p), a3, a4, uintptr(q), 0)
	} else {
		r, _, err = systemCall(number, a1, uintptr(p), a3, a4, uintptr(q), 0)
	}
	return r, err
}

// errno is an error number; 0 is none.
type errno uintptr

// The error numbers that something here depends on, or that an operator may well see.
const (
	success      errno = 0
	eperm        errno = 1
	enoent       errno = 2
	eintr        errno = 4
	eagain       errno = 11
	enomem       errno = 12
	eacces       errno = 13
	enotdir      errno = 20
	einval       errno = 22
	enfile       errno = 23
	emfile       errno = 24
	epipe        errno = 32
	enametoolong errno = 36
	eloop        errno = 40
	eprototype   errno = 91
	econnreset   errno = 104
	econnrefused errno = 111
)

// Error gives errno's text, errno(3).
func (e errno) Error() string {
	switch e {
	case success:
		return "success"
	case eperm:
		return "operation not permitted"
	case enoent:
		return "no such file or directory"
	case eintr:
		return "interrupted system call"
	case eagain:
		return "resource temporarily unavailable"
	case enomem:
		return "cannot allocate memory"
	case eacces:
		return "permission denied"
	case enotdir:
		return "not a directory"
	case einval:
		return "invalid argument"
	case enfile:
		return "too many open files in system"
	case emfile:
		return "too many open files"
	case epipe:
		return "broken pipe"
	case enametoolong:
		return "file name too long"
	case eloop:
		return "too many levels of symbolic links"
	case eprototype:
		return "protocol wrong type for socket"
	case econnreset:
		return "connection reset by peer"
	case econnrefused:
		return "connection refused"
	}
	return join("error number ", decimal(int(e)))
}

// The kernel's structures, which are the same on all platforms of this file.
type (
	timespec struct{ seconds, nanoseconds int64 }
	timeval  struct{ seconds, microseconds int64 }
	rlimit   struct{ current, most uint64 }
	pollFD   struct {
		fd              int32
		events, revents int16
	}
	credentials struct {
		pid      int32
		uid, gid uint32
	}
	// signalAction is the beginning of the kernel's sigaction, and room for the rest.
	signalAction struct {
		handler uint64
		_       [3]uint64
	}
	// unixAddress is sockaddr_un, unix(7).
	unixAddress struct {
		family uint16
		path   [108]byte
	}
	// fileStatus is the beginning of statx(2)'s structure, and room for the rest.
	fileStatus struct {
		mask, blockSize uint32
		attributes      uint64
		links, uid, gid uint32
		mode            uint16
		_               [256 - 30]byte
	}
)

const (
	currentDirectory = ^uintptr(99) // AT_FDCWD, -100
	closeOnExec      = 0x80000      // O_CLOEXEC and SOCK_CLOEXEC

	typeMask      = 0xf000 // of a mode
	typeFIFO      = 0x1000
	typeDirectory = 0x4000
	typeRegular   = 0x8000
	typeSocket    = 0xc000

	familyUnix   = 1 // AF_UNIX
	socketStream = 1 // SOCK_STREAM
	socketLevel  = 1 // SOL_SOCKET
)

// pathBuffer is for a path and its zero byte. Those that are asked for here are shorter: a socket's, its directory's, and two of /proc.
type pathBuffer [128]byte

func (b *pathBuffer) set(path string) errno {
	if len(path) >= len(b) {
		return enametoolong
	}
	for i := range len(path) {
		if path[i] == 0 {
			return einval
		}
	}
	b[copy(b[:], path)] = 0
	return success
}

func openFile(path string) (fd int, err errno) {
	var name pathBuffer
	if err := name.set(path); err != success {
		return -1, err
	}
	n, err := blockingCall(sysOpenat, currentDirectory, unsafe.Pointer(&name), closeOnExec, 0, nil)
	return int(n), err
}

func closeFile(fd int) { _, _, _ = systemCall(sysClose, uintptr(fd), 0, 0, 0, 0, 0) }

// readFile and writeFile, sendSocket and the rest are read(2), write(2) and so on. Nothing empty is asked for.
func readFile(fd int, b []byte) (n int, err errno) {
	r, err := blockingCall(sysRead, uintptr(fd), unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)), 0, nil)
	return count(r, err), err
}

func writeFile(fd int, text string) (n int, err errno) {
	r, err := blockingCall(sysWrite, uintptr(fd), unsafe.Pointer(unsafe.StringData(text)), uintptr(len(text)), 0, nil)
	return count(r, err), err
}

// sendSocket sends without waiting and, where nobody reads any more, without a signal.
func sendSocket(fd int, b []byte) (n int, err errno) {
	const noSignal, dontWait = 0x4000, 0x40
	r, _, err := systemCall(sysSendto, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), noSignal|dontWait, 0, 0)
	return count(r, err), err
}

// count is how much was read or written, 0 with an error.
func count(r uintptr, err errno) int {
	if err != success {
		return 0
	}
	return int(r)
}

// statusOf looks at a file, not at what a symbolic link leads to; with an empty path at fd itself.
func statusOf(fd uintptr, path string) (status fileStatus, err errno) {
	const noFollow, emptyPath, basic = 0x100, 0x1000, 0x7ff
	var name pathBuffer
	if err := name.set(path); err != success {
		return fileStatus{}, err
	}
	_, err = blockingCall(sysStatx, fd, unsafe.Pointer(&name), noFollow|emptyPath, basic, unsafe.Pointer(&status))
	return status, err
}

func effectiveUID() uint32 {
	uid, _, _ := systemCall(sysGeteuid, 0, 0, 0, 0, 0, 0)
	return uint32(uid)
}

func newUnixSocket() (fd int, err errno) {
	n, _, err := systemCall(sysSocket, familyUnix, socketStream|closeOnExec, 0, 0, 0, 0)
	return int(n), err
}

// connectUnix connects to path, which the caller has seen to be short enough.
func connectUnix(fd int, path string) errno {
	address := unixAddress{family: familyUnix}
	length := 2 + copy(address.path[:], path) + 1
	_, err := blockingCall(sysConnect, uintptr(fd), unsafe.Pointer(&address), uintptr(length), 0, nil)
	return err
}

// limitSending bounds how long sending and connecting may wait, in nanoseconds.
func limitSending(fd int, patience int64) errno {
	const sendTimeout = 21 // SO_SNDTIMEO
	limit := timeval{patience / second, patience % second / 1000}
	_, _, err := systemCall(sysSetsockopt, uintptr(fd), socketLevel, sendTimeout, uintptr(unsafe.Pointer(&limit)), unsafe.Sizeof(limit), 0)
	return err
}

func peerOf(fd int) (peer credentials, err errno) {
	const peerCredentials = 17 // SO_PEERCRED
	size := uint32(unsafe.Sizeof(peer))
	_, _, err = systemCall(sysGetsockopt, uintptr(fd), socketLevel, peerCredentials, uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)), 0)
	return peer, err
}

// poll waits for what p wants for at most left nanoseconds, and says how many of it, 1 or 0, has come. It is a blockingCall with other pointers.
//
//go:noinline
func poll(p *pollFD, left int64) (n int, err errno) {
	limit := timespec{left / second, left % second}
	var r uintptr
	if running {
		r, _, err = schedulerCall(sysPpoll, uintptr(unsafe.Pointer(p)), 1, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	} else {
		r, _, err = systemCall(sysPpoll, uintptr(unsafe.Pointer(p)), 1, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	}
	return int(r), err
}

// monotonic reads CLOCK_MONOTONIC, in nanoseconds.
func monotonic() int64 {
	const clockMonotonic = 1
	var now timespec
	_, _, _ = systemCall(sysClockGettime, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0, 0, 0, 0)
	return now.seconds*second + now.nanoseconds
}

// ignoreBrokenPipes has a pipe that nobody reads any more be an error of write(2), and no signal that ends the process. Go's runtime sees to that elsewhere; here there may be none, and the process ends
// soon.
func ignoreBrokenPipes() {
	const brokenPipe, ignore, setSize = 13, 1, 8 // SIGPIPE, SIG_IGN, sizeof(sigset_t)
	action := signalAction{handler: ignore}
	_, _, _ = systemCall(sysRtSigaction, brokenPipe, uintptr(unsafe.Pointer(&action)), 0, setSize, 0, 0)
}

// smallPages has memory be provided by the page, as it is used, also where the kernel would rather provide two megabytes at once, and clear them: much more than is used of it.
func smallPages(memory *rooms) {
	const noHugePage, largestPage = 15, 64 << 10 // MADV_NOHUGEPAGE
	begin := (uintptr(unsafe.Pointer(memory)) + largestPage - 1) &^ (largestPage - 1)
	end := (uintptr(unsafe.Pointer(memory)) + unsafe.Sizeof(*memory)) &^ (largestPage - 1)
	_, _, _ = systemCall(sysMadvise, begin, end-begin, noHugePage, 0, 0, 0)
}

// exit ends the process, all its threads.
func exit(status int) {
	for {
		_, _, _ = systemCall(sysExitGroup, uintptr(status), 0, 0, 0, 0, 0)
	}
}

// harden is what main does first, and for the same reasons: the request may hold a pod's token, and the reply has passwords. It is done here since main is not reached.
func harden() {
	const setDumpable, limitCore = 4, 4 // PR_SET_DUMPABLE, RLIMIT_CORE
	limit := rlimit{1, 1}
	_, _, _ = systemCall(sysPrlimit64, 0, limitCore, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	_, _, _ = systemCall(sysPrctl, setDumpable, 0, 0, 0, 0, 0)
}
