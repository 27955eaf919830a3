package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"

	"github.com/nextstack/nextstack/api/problem"
)

// A page token says behind which key the next page begins. It is signed, together with the question it belongs to: one
// that was made up, changed, or used with another filter is refused instead of giving a page of something else.

// pageSigner makes and reads page tokens.
type pageSigner []byte

// macSize is how much of the signature a token carries.
const macSize = 16

// maxAfter bounds what a token can hold; keys are far shorter.
const maxAfter = 256

// token returns the token for what comes behind after, in the answer to question.
func (k pageSigner) token(question, after string) string {
	if after == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(k.mac(question, after), after...))
}

// after is the inverse of token. An empty token is the beginning.
func (k pageSigner) after(question, token string) (string, error) {
	if token == "" {
		return "", nil
	}
	bad := &problem.Problem{
		Kind: problem.Invalid, What: "the page token is not valid", Why: "it belongs to another question, or it is too old or damaged",
		Fix: "begin with the first page", Fields: []problem.Field{{Path: "query.page_token", Message: "is not one that was given for this question"}},
	}
	if len(token) > base64.RawURLEncoding.EncodedLen(macSize+maxAfter) {
		return "", bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) <= macSize {
		return "", bad
	}
	after := string(b[macSize:])
	if !hmac.Equal(b[:macSize], k.mac(question, after)) {
		return "", bad
	}
	return after, nil
}

func (k pageSigner) mac(question, after string) []byte {
	m := hmac.New(sha256.New, k)
	m.Write([]byte(question))
	m.Write([]byte{0})
	m.Write([]byte(after))
	return m.Sum(nil)[:macSize]
}
