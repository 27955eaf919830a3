package accounts

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api/auth"
)

// A token is tokenPrefix and 32 random bytes. The prefix lets people and scanners see what it is.
const (
	tokenPrefix = "ns_"
	tokenBytes  = 32
)

func newToken() string {
	b := make([]byte, tokenBytes)
	mustRead(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// tokenID returns what stands for a token in the store: from it the token cannot be told.
func tokenID(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// parseToken returns the ID of what looks like a token.
func parseToken(s string) (id string, ok bool) {
	if len(s) != len(tokenPrefix)+base64.RawURLEncoding.EncodedLen(tokenBytes) || !strings.HasPrefix(s, tokenPrefix) {
		return "", false
	}
	return tokenID(s), true
}

// Bounds of what is remembered of tokens.
const (
	// cacheFor is how long a revocation may go unnoticed while the store's watch is away. It is longer than the time between two
	// reports of an agent (10 s where there are many), which would each read the store otherwise.
	cacheFor  = time.Minute
	cacheSize = 4096
)

// tokenCache remembers whose tokens are whose, so that not every request reads the store.
type tokenCache struct {
	mu         sync.Mutex
	entries    map[string]cachedToken
	generation int64 // counts removals: what was read before one must not be remembered after it
}

type cachedToken struct {
	who     auth.Principal
	expires time.Time
	until   time.Time
}

func newTokenCache() *tokenCache { return &tokenCache{entries: map[string]cachedToken{}} }

func (c *tokenCache) get(id string, now time.Time) (who auth.Principal, expires time.Time, known bool, generation int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[id]
	if !ok || !now.Before(e.until) {
		return auth.Principal{}, time.Time{}, false, c.generation
	}
	return e.who, e.expires, true, c.generation
}

func (c *tokenCache) put(id string, who auth.Principal, expires, now time.Time, generation int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.generation != generation {
		return
	}
	if len(c.entries) >= cacheSize {
		clear(c.entries)
	}
	c.entries[id] = cachedToken{who: who, expires: expires, until: now.Add(cacheFor)}
}

func (c *tokenCache) drop(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, id)
	c.generation++
}

func (c *tokenCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.generation++
}
