package accounts

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/argon2"

	"github.com/nextstack/nextstack/api/problem"
)

// Lengths of a password in bytes. The upper bound keeps a request from being made of one huge password.
const (
	MinPassword = 8
	MaxPassword = 1024
)

// The cost of a hash. It is what a small machine can bear: 19 MiB and some tens of milliseconds.
const (
	argonTime    = 2
	argonMemory  = 19 * 1024 // KiB
	argonThreads = 1
	argonKey     = 32
	argonSalt    = 16
)

// Upper bounds of what a stored hash may ask for, so that a damaged record cannot eat the machine.
const (
	maxArgonTime   = 16
	maxArgonMemory = 256 * 1024 // KiB
)

// A flood of logins must not eat the memory: so many are hashed at once, so many may wait, and the rest is sent away.
const (
	hashesAtOnce = 2
	hashesQueued = 64
)

// hasher hashes passwords, a few at a time.
type hasher struct {
	slots   chan struct{}
	waiting atomic.Int64
	decoy   string // a hash that no password has, for users that do not exist
	derive  func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte
}

func newHasher() *hasher {
	h := &hasher{slots: make(chan struct{}, hashesAtOnce), derive: argon2.IDKey}
	key, salt := make([]byte, argonKey), make([]byte, argonSalt)
	mustRead(key)
	mustRead(salt)
	h.decoy = phc(argonTime, argonMemory, argonThreads, salt, key)
	return h
}

func (h *hasher) acquire(ctx context.Context) error {
	if h.waiting.Add(1) > hashesQueued {
		h.waiting.Add(-1)
		return problem.New(problem.Unavailable, "too many logins at once").Try("try again in a few seconds")
	}
	defer h.waiting.Add(-1)
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return problem.Wrap(ctx.Err(), problem.Timeout, "gave up waiting to check a password")
	}
}

func (h *hasher) release() { <-h.slots }

func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.acquire(ctx); err != nil {
		return "", err
	}
	defer h.release()
	salt := make([]byte, argonSalt)
	mustRead(salt)
	key := h.derive([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	return phc(argonTime, argonMemory, argonThreads, salt, key), nil
}

func (h *hasher) verify(ctx context.Context, password, encoded string) (bool, error) {
	time, memory, threads, salt, want, err := parsePHC(encoded)
	if err != nil {
		return false, err
	}
	if err := h.acquire(ctx); err != nil {
		return false, err
	}
	defer h.release()
	got := h.derive([]byte(password), salt, time, memory, threads, uint32(len(want))) //nolint:gosec // parsePHC bounds it
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

func phc(time, memory uint32, threads uint8, salt, key []byte) string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, time, threads, enc.EncodeToString(salt), enc.EncodeToString(key))
}

func parsePHC(s string) (time, memory uint32, threads uint8, salt, key []byte, err error) {
	bad := problem.New(problem.Internal, "a stored password hash cannot be read").Try("give the user a new password")
	var version int
	f := strings.Split(s, "$")
	if len(f) != 6 || f[0] != "" || f[1] != "argon2id" {
		return 0, 0, 0, nil, nil, bad
	}
	if _, err := fmt.Sscanf(f[2], "v=%d", &version); err != nil || version != argon2.Version {
		return 0, 0, 0, nil, nil, bad
	}
	if _, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil {
		return 0, 0, 0, nil, nil, bad
	}
	salt, serr := base64.RawStdEncoding.DecodeString(f[4])
	key, kerr := base64.RawStdEncoding.DecodeString(f[5])
	if serr != nil || kerr != nil || len(salt) < 8 || len(key) < 16 || len(key) > 64 ||
		time < 1 || time > maxArgonTime || memory < 8 || memory > maxArgonMemory || threads < 1 || threads > 16 {
		return 0, 0, 0, nil, nil, bad
	}
	return time, memory, threads, salt, key, nil
}

// alphabet leaves out what people confuse: 0 O 1 l I. It has 32 letters, so that a random byte picks evenly.
const alphabet = "abcdefghijkmnpqrstuvwxyz23456789"

// newPassword returns 24 letters with 120 bits of chance in them.
func newPassword() string {
	b := make([]byte, 24)
	mustRead(b)
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}

// mustRead fills b with chance. The system's source of it does not fail: since Go 1.24 the runtime ends the process instead.
func mustRead(b []byte) { _, _ = rand.Read(b) }
