// Package accounts finds out who somebody is: users with passwords, bearer tokens, the credentials of agents and the join
// token they are got with. It is the only caller of auth.Authenticated.
package accounts

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// AdminName is the user that EnsureAdmin makes.
const AdminName = "admin"

// Lifetimes of a login, in hours.
const (
	DefaultHours = 12
	MaxHours     = 720
)

// Options configures Accounts.
type Options struct {
	// JoinToken is what an agent must know to become a member. Empty: no agent can join.
	JoinToken string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Accounts keeps users and tokens in the store.
type Accounts struct {
	kv      store.KV
	self    auth.Handle
	join    [sha256.Size]byte
	canJoin bool
	now     func() time.Time

	hasher  *hasher
	limiter *limiter
	cache   *tokenCache
}

// New returns the accounts in kv.
func New(kv store.KV, o Options) *Accounts {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Accounts{
		kv: kv, self: auth.ControlPlane("accounts"), now: o.Now,
		join: sha256.Sum256([]byte(o.JoinToken)), canJoin: o.JoinToken != "",
		hasher: newHasher(), limiter: newLimiter(), cache: newTokenCache(),
	}
}

// EnsureAdmin makes the first user, unless there is one of its name, and returns its password, which is stored nowhere and
// cannot be shown again.
func (a *Accounts) EnsureAdmin(ctx context.Context) (password string, created bool, err error) {
	_, err = store.Find[api.User](ctx, a.kv, a.self, "", AdminName)
	if err == nil || !problem.Is(err, problem.NotFound) {
		return "", false, err
	}
	password = newPassword()
	hash, err := a.hasher.hash(ctx, password)
	if err != nil {
		return "", false, err
	}
	u := &api.User{
		Meta:         api.Meta{ID: api.NewID(), Name: AdminName, Created: a.now().UTC()},
		PasswordHash: hash, Role: string(auth.Admin),
	}
	d := store.NewDraft(a.self)
	d.Create(u)
	if _, err := d.Commit(ctx, a.kv); problem.Is(err, problem.Conflict) {
		return "", false, nil // another server made it in the meantime, and has shown its password
	} else if err != nil {
		return "", false, err
	}
	return password, true, nil
}

// SetPassword gives a user a new password and revokes all tokens the user has.
func (a *Accounts) SetPassword(ctx context.Context, user, password string) error {
	if len(password) < MinPassword || len(password) > MaxPassword {
		return problem.New(problem.Invalid, "the password must have %d to %d bytes", MinPassword, MaxPassword).Try("choose another password")
	}
	hash, err := a.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	err = store.Retry(ctx, func() error {
		u, err := store.Find[api.User](ctx, a.kv, a.self, "", user)
		if err != nil {
			return err
		}
		u.PasswordHash = hash
		d := store.NewDraft(a.self)
		d.Update(u)
		_, err = d.Commit(ctx, a.kv)
		return err
	})
	if err != nil {
		return err
	}
	return a.revokeAll(ctx, user, auth.Admin, "")
}

// Login checks a password and returns a new token. remote is where the request came from; too many wrong passwords from
// there for this user give an unavailable problem for a while, whether the password is right or not. An unknown user and a
// wrong password cannot be told apart, neither by the error nor by the time it takes.
func (a *Accounts) Login(ctx context.Context, l api.Login, remote string) (*api.LoggedIn, error) {
	if err := validateLogin(l); err != nil {
		return nil, err
	}
	key := l.User + "\x00" + remote
	if wait := a.limiter.try(key, a.now()); wait > 0 {
		return nil, problem.New(problem.Unavailable, "too many failed logins").Because("from this address for this user").
			Try("wait %d seconds and try again", int(wait.Seconds())+1)
	}
	u, err := store.Find[api.User](ctx, a.kv, a.self, "", l.User)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return nil, err
	}
	hash := a.hasher.decoy
	if u != nil && err == nil {
		hash = u.PasswordHash
	}
	ok, verr := a.hasher.verify(ctx, l.Password, hash)
	if verr != nil {
		return nil, verr
	}
	if !ok || err != nil {
		return nil, problem.New(problem.Unauthenticated, "the user name or the password is wrong").Try("check both and log in again")
	}
	a.limiter.forget(key)
	hours := l.Hours
	if hours == 0 {
		hours = DefaultHours
	}
	expires := a.now().Add(time.Duration(hours) * time.Hour).UTC().Truncate(time.Second)
	secret, err := a.issue(ctx, u.Name, auth.Role(u.Role), expires)
	if err != nil {
		return nil, err
	}
	return &api.LoggedIn{Token: secret, Expires: expires}, nil
}

func validateLogin(l api.Login) error {
	var v problem.Validation
	v.Check(api.ValidName(l.User), "user", nil, "must be a user name: 1-63 characters of a-z, 0-9 and '-'")
	v.Check(l.Password != "" && len(l.Password) <= MaxPassword, "password", nil, "must have 1 to %d bytes", MaxPassword)
	v.Check(l.Hours >= 0 && l.Hours <= MaxHours, "hours", l.Hours, "must be 0 (which means %d) to %d", DefaultHours, MaxHours)
	return v.Err("login")
}

// CheckJoin returns nil if token is the join token. It takes the same time for every wrong one.
func (a *Accounts) CheckJoin(token string) error {
	sum := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(sum[:], a.join[:]) != 1 || !a.canJoin {
		return problem.New(problem.Unauthenticated, "the join token is wrong").Try("take the one that the server wrote to its --join-token-file")
	}
	return nil
}

// IssueAgent gives an agent a new credential, which never expires, and revokes the ones it had.
func (a *Accounts) IssueAgent(ctx context.Context, agent string) (string, error) {
	secret, err := a.issue(ctx, agent, auth.Agent, time.Time{})
	if err != nil {
		return "", err
	}
	return secret, a.revokeAll(ctx, agent, auth.Agent, tokenID(secret))
}

// Authenticate returns the authority of the bearer of a token, or an unauthenticated problem.
func (a *Accounts) Authenticate(ctx context.Context, bearer string) (auth.Handle, error) {
	now := a.now()
	id, ok := parseToken(bearer)
	if !ok {
		return auth.Handle{}, errToken()
	}
	who, expires, known, generation := a.cache.get(id, now)
	if !known {
		t, err := store.Get[api.Token](ctx, a.kv, a.self, "", id)
		if problem.Is(err, problem.NotFound) {
			return auth.Handle{}, errToken()
		}
		if err != nil {
			return auth.Handle{}, err
		}
		who, expires = auth.Principal{Name: t.Subject, Role: auth.Role(t.Role)}, t.Expires
		a.cache.put(id, who, expires, now, generation)
	}
	if !expires.IsZero() && !now.Before(expires) {
		return auth.Handle{}, errToken()
	}
	return auth.Authenticated(who), nil
}

// Revoke makes a token worthless. It is content if it is so already.
func (a *Accounts) Revoke(ctx context.Context, bearer string) error {
	id, ok := parseToken(bearer)
	if !ok {
		return nil
	}
	return a.revoke(ctx, id)
}

// Sweep removes tokens that have expired and returns how many there were.
func (a *Accounts) Sweep(ctx context.Context, now time.Time) (int, error) {
	tokens, err := store.List[api.Token](ctx, a.kv, a.self, "")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, t := range tokens {
		if t.Expires.IsZero() || now.Before(t.Expires) {
			continue
		}
		if err := a.revoke(ctx, t.ID); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Run keeps what is remembered of tokens true to the store, until ctx is done: a token that another server revokes is
// worthless here as soon as the store tells. It also removes expired tokens, hourly. It returns nil.
func (a *Accounts) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	prefix := store.Prefix(api.KindToken, "")
	for ctx.Err() == nil {
		_, revision, err := a.kv.List(ctx, prefix)
		if err != nil {
			wait(ctx, time.Second)
			continue
		}
		a.cache.clear()
		changes := a.kv.Watch(ctx, prefix, revision)
	watching:
		for {
			select {
			case c, ok := <-changes:
				if !ok {
					break watching // and begin anew, after a pause: the store is in trouble, or we are done
				}
				a.cache.drop(c.Key[len(prefix):])
			case now := <-tick.C:
				// What cannot be removed now is worthless all the same, and is tried again in an hour.
				_, _ = a.Sweep(ctx, now)
			}
		}
		wait(ctx, time.Second)
	}
	return nil
}

// wait waits for d, or until ctx is done.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (a *Accounts) issue(ctx context.Context, subject string, role auth.Role, expires time.Time) (string, error) {
	secret := newToken()
	d := store.NewDraft(a.self)
	d.Create(&api.Token{Meta: api.Meta{ID: tokenID(secret), Created: a.now().UTC()}, Subject: subject, Role: string(role), Expires: expires})
	_, err := d.Commit(ctx, a.kv)
	return secret, err
}

func (a *Accounts) revoke(ctx context.Context, id string) error {
	defer a.cache.drop(id)
	return store.Retry(ctx, func() error {
		t, err := store.Get[api.Token](ctx, a.kv, a.self, "", id)
		if problem.Is(err, problem.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		d := store.NewDraft(a.self)
		d.Delete(t)
		_, err = d.Commit(ctx, a.kv)
		return err
	})
}

// revokeAll revokes the tokens of a subject, but for the one with ID keep.
func (a *Accounts) revokeAll(ctx context.Context, subject string, role auth.Role, keep string) error {
	tokens, err := store.List[api.Token](ctx, a.kv, a.self, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tokens {
		if t.Subject == subject && t.Role == string(role) && t.ID != keep {
			errs = append(errs, a.revoke(ctx, t.ID))
		}
	}
	return errors.Join(errs...)
}

func errToken() error {
	return problem.New(problem.Unauthenticated, "the token is not valid").Because("it is unknown, revoked or expired").Try("log in again")
}
