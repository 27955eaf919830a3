package accounts

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func setup(t *testing.T) (*Accounts, *store.Memory, *clock) {
	t.Helper()
	kv, c := store.NewMemory(), &clock{at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	return New(kv, Options{JoinToken: "join", Now: c.now}), kv, c
}

func dump(t *testing.T, kv store.KV) string {
	t.Helper()
	entries, _, err := kv.List(t.Context(), "")
	require.NoError(t, err)
	var out strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&out, "%s %s\n", e.Key, e.Value)
	}
	return out.String()
}

func TestAdminIsMadeOnce(t *testing.T) {
	a, kv, _ := setup(t)
	var mu sync.Mutex
	var passwords []string
	var wg sync.WaitGroup
	for range 4 { // servers that start at once
		wg.Go(func() {
			p, created, err := a.EnsureAdmin(t.Context())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if created {
				passwords = append(passwords, p)
			} else if p != "" {
				t.Error("a password that does not work was shown")
			}
		})
	}
	wg.Wait()
	require.Len(t, passwords, 1)
	require.Len(t, passwords[0], 24)
	require.NotContains(t, dump(t, kv), passwords[0])
	l, err := a.Login(t.Context(), api.Login{User: AdminName, Password: passwords[0]}, "r")
	require.NoError(t, err)
	require.NotContains(t, dump(t, kv), l.Token)
	_, created, err := a.EnsureAdmin(t.Context())
	require.NoError(t, err)
	require.False(t, created)
}

func TestTokensExpire(t *testing.T) {
	a, kv, c := setup(t)
	password, _, err := a.EnsureAdmin(t.Context())
	require.NoError(t, err)
	l, err := a.Login(t.Context(), api.Login{User: AdminName, Password: password, Hours: 1}, "r")
	require.NoError(t, err)
	require.Equal(t, c.now().Add(time.Hour), l.Expires)
	h, err := a.Authenticate(t.Context(), l.Token)
	require.NoError(t, err)
	require.Equal(t, auth.Principal{Name: AdminName, Role: auth.Admin}, h.Who())
	c.pass(time.Hour - time.Second)
	_, err = a.Authenticate(t.Context(), l.Token)
	require.NoError(t, err)
	c.pass(time.Second) // it is still remembered from just now
	_, err = a.Authenticate(t.Context(), l.Token)
	require.True(t, problem.Is(err, problem.Unauthenticated))
	n, err := a.Sweep(t.Context(), c.now())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NotContains(t, dump(t, kv), tokenID(l.Token))
}

func TestRevocation(t *testing.T) {
	a, kv, c := setup(t)
	password, _, err := a.EnsureAdmin(t.Context())
	require.NoError(t, err)
	login := func() string {
		l, err := a.Login(t.Context(), api.Login{User: AdminName, Password: password}, "r")
		require.NoError(t, err)
		_, err = a.Authenticate(t.Context(), l.Token)
		require.NoError(t, err)
		return l.Token
	}
	token := login()
	require.NoError(t, a.Revoke(t.Context(), token))
	require.NoError(t, a.Revoke(t.Context(), token))
	require.NoError(t, a.Revoke(t.Context(), "nonsense"))
	_, err = a.Authenticate(t.Context(), token)
	require.True(t, problem.Is(err, problem.Unauthenticated))

	// Another server revokes: without the watch it is noticed when what is remembered is too old,
	other := New(kv, Options{Now: c.now})
	token = login()
	require.NoError(t, other.Revoke(t.Context(), token))
	c.pass(cacheFor)
	_, err = a.Authenticate(t.Context(), token)
	require.True(t, problem.Is(err, problem.Unauthenticated))

	// and with it as soon as the store tells.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	token = login()
	require.Eventually(t, func() bool { // until Run watches, a revocation may be missed; then it never is
		token := login()
		if other.Revoke(t.Context(), token) != nil {
			return false
		}
		deadline := time.Now().Add(100 * time.Millisecond)
		for time.Now().Before(deadline) {
			if _, err := a.Authenticate(t.Context(), token); problem.Is(err, problem.Unauthenticated) {
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, other.Revoke(t.Context(), token))
	require.Eventually(t, func() bool {
		_, err := a.Authenticate(t.Context(), token)
		return problem.Is(err, problem.Unauthenticated)
	}, 5*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
}

// A token that is read from the store while it is being revoked must not be remembered.
func TestRevocationWhileAuthenticating(t *testing.T) {
	c := newTokenCache()
	now := time.Now()
	_, _, known, generation := c.get("t", now)
	require.False(t, known)
	c.drop("t") // here it is revoked
	c.put("t", auth.Principal{Name: "x", Role: auth.Admin}, time.Time{}, now, generation)
	_, _, known, _ = c.get("t", now)
	require.False(t, known)
}

func TestTokenCacheIsBounded(t *testing.T) {
	c := newTokenCache()
	for i := range 3 * cacheSize {
		_, _, _, g := c.get("x", time.Now())
		c.put(fmt.Sprint(i), auth.Principal{}, time.Time{}, time.Now(), g)
		require.LessOrEqual(t, len(c.entries), cacheSize)
	}
}

func TestAgents(t *testing.T) {
	a, _, c := setup(t)
	require.NoError(t, a.CheckJoin("join"))
	for _, bad := range []string{"", "joi", "join ", "JOIN"} {
		require.True(t, problem.Is(a.CheckJoin(bad), problem.Unauthenticated), bad)
	}
	require.Error(t, New(store.NewMemory(), Options{}).CheckJoin(""), "no join token: nobody joins")

	first, err := a.IssueAgent(t.Context(), "id-1")
	require.NoError(t, err)
	other, err := a.IssueAgent(t.Context(), "id-2")
	require.NoError(t, err)
	c.pass(10 * 365 * 24 * time.Hour)
	h, err := a.Authenticate(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, auth.Principal{Name: "id-1", Role: auth.Agent}, h.Who())
	second, err := a.IssueAgent(t.Context(), "id-1")
	require.NoError(t, err)
	_, err = a.Authenticate(t.Context(), first)
	require.True(t, problem.Is(err, problem.Unauthenticated))
	for _, token := range []string{second, other} {
		_, err = a.Authenticate(t.Context(), token)
		require.NoError(t, err)
	}
	n, err := a.Sweep(t.Context(), c.now())
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestLoginIsLimited(t *testing.T) {
	a, _, c := setup(t)
	password, _, err := a.EnsureAdmin(t.Context())
	require.NoError(t, err)
	try := func(password, remote string) error {
		_, err := a.Login(t.Context(), api.Login{User: AdminName, Password: password}, remote)
		return err
	}
	// All at once, so that counting after the fact would not do.
	var wg sync.WaitGroup
	var mu sync.Mutex
	kinds := map[problem.Kind]int{}
	for range 20 {
		wg.Go(func() {
			err := try("wrong", "far")
			mu.Lock()
			defer mu.Unlock()
			kinds[problem.KindOf(err)]++
		})
	}
	wg.Wait()
	require.Equal(t, map[problem.Kind]int{problem.Unauthenticated: maxFailures, problem.Unavailable: 20 - maxFailures}, kinds)
	require.True(t, problem.Is(try(password, "far"), problem.Unavailable), "not even with the right one")
	require.NoError(t, try(password, "near"), "others are not hindered")
	c.pass(forgiveOne)
	require.True(t, problem.Is(try("wrong", "far"), problem.Unauthenticated))
	require.True(t, problem.Is(try("wrong", "far"), problem.Unavailable))
	c.pass(forgiveOne)
	require.NoError(t, try(password, "far"))
	for range maxFailures {
		require.True(t, problem.Is(try("wrong", "far"), problem.Unauthenticated), "a success forgives")
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter()
	now := time.Now()
	for i := range 3 * limiterSize {
		l.try(fmt.Sprint(i), now)
		require.LessOrEqual(t, len(l.buckets), limiterSize)
	}
}

// A user that does not exist costs as much as a wrong password: the same hash is worked out.
func TestUnknownUserCostsAsMuch(t *testing.T) {
	a, _, c := setup(t)
	_, _, err := a.EnsureAdmin(t.Context())
	require.NoError(t, err)
	derive := a.hasher.derive
	work := func(user string) (costs []string) {
		a.hasher.derive = func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte {
			costs = append(costs, fmt.Sprintf("%d bytes, salt of %d, %d times %d KiB on %d threads, for %d bytes", len(password), len(salt), time, memory, threads, keyLen))
			return derive(password, salt, time, memory, threads, keyLen)
		}
		_, err := a.Login(t.Context(), api.Login{User: user, Password: "wrong"}, "r")
		require.True(t, problem.Is(err, problem.Unauthenticated), "%v", err)
		c.pass(time.Hour)
		return costs
	}
	known := work(AdminName)
	require.Len(t, known, 1)
	require.Equal(t, known, work("nobody"))
}

func TestLoginShape(t *testing.T) {
	a, _, _ := setup(t)
	for name, l := range map[string]api.Login{
		"no user": {Password: "x"}, "odd user": {User: "a/b", Password: "x"}, "no password": {User: "a"},
		"huge password": {User: "a", Password: strings.Repeat("x", MaxPassword+1)}, "negative": {User: "a", Password: "x", Hours: -1}, "too long": {User: "a", Password: "x", Hours: 721},
	} {
		_, err := a.Login(t.Context(), l, "r")
		require.True(t, problem.Is(err, problem.Invalid), name)
	}
}

func TestFloodOfLoginsIsBounded(t *testing.T) {
	h := newHasher()
	for range hashesAtOnce { // all slots are taken
		require.NoError(t, h.acquire(t.Context()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 200)
	for range 200 {
		go func() { errs <- h.acquire(ctx) }()
	}
	for range 200 - hashesQueued { // those are sent away without waiting
		require.True(t, problem.Is(<-errs, problem.Unavailable))
	}
	cancel()
	for range hashesQueued {
		require.True(t, problem.Is(<-errs, problem.Timeout))
	}
	for range hashesAtOnce {
		h.release()
	}
	require.NoError(t, h.acquire(t.Context()))
}

func TestHashes(t *testing.T) {
	h := newHasher()
	one, err := h.hash(t.Context(), "secret")
	require.NoError(t, err)
	two, err := h.hash(t.Context(), "secret")
	require.NoError(t, err)
	require.NotEqual(t, one, two, "salted")
	require.True(t, strings.HasPrefix(one, "$argon2id$v=19$m=19456,t=2,p=1$"), one)
	for password, want := range map[string]bool{"secret": true, "Secret": false, "": false, "secret ": false} {
		ok, err := h.verify(t.Context(), password, one)
		require.NoError(t, err)
		require.Equal(t, want, ok, password)
	}
	for _, bad := range []string{
		"", "secret", "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5", "$argon2id$v=19$m=99999999,t=2,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5",
		"$argon2id$v=19$m=19456,t=0,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5", "$argon2id$v=19$m=19456,t=2,p=1$!$!", "$argon2id$v=16$m=19456,t=2,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5",
	} {
		ok, err := h.verify(t.Context(), "secret", bad)
		require.False(t, ok)
		require.True(t, problem.Is(err, problem.Internal), bad)
	}
}

func TestSetPassword(t *testing.T) {
	a, _, _ := setup(t)
	password, _, err := a.EnsureAdmin(t.Context())
	require.NoError(t, err)
	l, err := a.Login(t.Context(), api.Login{User: AdminName, Password: password}, "r")
	require.NoError(t, err)
	require.True(t, problem.Is(a.SetPassword(t.Context(), AdminName, "short"), problem.Invalid))
	require.True(t, problem.Is(a.SetPassword(t.Context(), "nobody", "long enough"), problem.NotFound))
	require.NoError(t, a.SetPassword(t.Context(), AdminName, "long enough"))
	_, err = a.Authenticate(t.Context(), l.Token)
	require.True(t, problem.Is(err, problem.Unauthenticated), "old tokens are worthless")
	_, err = a.Login(t.Context(), api.Login{User: AdminName, Password: "long enough"}, "r")
	require.NoError(t, err)
}

func FuzzParsePHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5")
	f.Add("$argon2id$v=19$m=1,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		time, memory, threads, _, key, err := parsePHC(s)
		if err == nil && (time == 0 || time > maxArgonTime || memory > maxArgonMemory || threads == 0 || len(key) < 16) {
			t.Fatalf("%q was taken", s)
		}
	})
}
