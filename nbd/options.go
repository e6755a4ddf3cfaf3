package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
)

// allocationContext is the ID of base:allocation, the one metadata context.
const (
	allocationContext     uint32 = 1
	allocationContextName        = "base:allocation"
)

// exportName answers NBD_OPT_EXPORT_NAME, which knows no errors: what cannot
// be served ends the connection.
//
//	S: u64 size, u16 transmission flags, 124 zeroes unless NO_ZEROES
func (h *handshake) exportName(ctx context.Context, name []byte, tooBig bool) (*opened, error) {
	switch why := badString(name); {
	case tooBig || why != "":
		return nil, fmt.Errorf("export name: %s", why)
	case h.srv.closing():
		return nil, ErrServerClosed
	case h.mode == extendedReplies:
		return nil, fmt.Errorf("NBD_OPT_EXPORT_NAME after extended headers")
	case h.srv.opt.TLSMode == TLSRequired && !h.secure:
		return nil, fmt.Errorf("NBD_OPT_EXPORT_NAME without TLS, which is required")
	}
	info, err := h.info(ctx, string(name))
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", name, err)
	}
	exp, err := h.open(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", name, err)
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(exp.info.Size))
	h.out = binary.BigEndian.AppendUint16(h.out, exp.ses.flags())
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	if err := h.flush(); err != nil {
		exp.release()
		return nil, err
	}
	return exp, nil
}

// list answers NBD_OPT_LIST.
//
//	S: NBD_REP_SERVER for each: u32 length of name, name, description
func (h *handshake) list(ctx context.Context, data []byte) {
	if len(data) != 0 {
		h.refuse(optList, repErrInvalid, "this option takes no data")
		return
	}
	exports, err := h.srv.opt.Exports.List(ctx)
	if err != nil {
		h.log.Warn("listing exports failed", "err", err)
		h.refuse(optList, repErrPlatform, err.Error())
		return
	}
	for _, e := range exports {
		n := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		h.reply(optList, repServer, n, []byte(e.Name), []byte(e.Description))
	}
	h.ack(optList)
}

// infoOrGo answers NBD_OPT_INFO and NBD_OPT_GO.
//
//	C: u32 length of name, name, u16 count, u16 information types
func (h *handshake) infoOrGo(ctx context.Context, opt option, data []byte) (*opened, error) {
	name, asked, why := parseInfo(data)
	if why != "" {
		h.refuse(opt, repErrInvalid, why)
		return nil, h.flush()
	}
	var exp *opened
	info, err := h.info(ctx, name)
	if err == nil && opt == optGo {
		if exp, err = h.open(ctx, info); err == nil {
			info = exp.info
		}
	}
	if err != nil {
		h.log.Info("export not opened", "export", name, "err", err)
		h.refuse(opt, optionErrorOf(err), fmt.Sprintf("export %q: %v", name, err))
		return nil, h.flush()
	}
	h.describe(opt, info, h.session(info), asked)
	h.ack(opt)
	if err := h.flush(); err != nil {
		if exp != nil {
			exp.release()
		}
		return nil, err
	}
	return exp, nil
}

// parseInfo takes the data of INFO and GO apart; why is what is wrong with it.
func parseInfo(data []byte) (name string, asked map[uint16]bool, why string) {
	if len(data) < 6 {
		return "", nil, "option data is too short"
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-6) {
		return "", nil, "name is longer than the option"
	}
	raw, rest := data[4:4+n], data[4+n:]
	if why := badString(raw); why != "" {
		return "", nil, "export name: " + why
	}
	count := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) != 2*count {
		return "", nil, "number of information requests does not fit the option's length"
	}
	asked = make(map[uint16]bool)
	for ; len(rest) > 0; rest = rest[2:] {
		asked[binary.BigEndian.Uint16(rest)] = true
	}
	return string(raw), asked, ""
}

// describe replies with what is known of an export: always its size and flags,
// the rest if asked for.
func (h *handshake) describe(opt option, info ExportInfo, ses session, asked map[uint16]bool) {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(info.Size))
	h.reply(opt, repInfo, binary.BigEndian.AppendUint16(b, ses.flags()))
	if asked[infoName] {
		h.reply(opt, repInfo, binary.BigEndian.AppendUint16(nil, infoName), []byte(info.Name))
	}
	if asked[infoDescription] && info.Description != "" {
		h.reply(opt, repInfo, binary.BigEndian.AppendUint16(nil, infoDescription), []byte(info.Description))
	}
	if asked[infoBlockSize] {
		b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
		b = binary.BigEndian.AppendUint32(b, minBlockSize)
		b = binary.BigEndian.AppendUint32(b, preferredBlockSize)
		h.reply(opt, repInfo, binary.BigEndian.AppendUint32(b, maxPayload))
	}
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and SET_META_CONTEXT.
//
//	C: u32 length of name, name, u32 count, then u32 length, query for each
//	S: NBD_REP_META_CONTEXT: u32 ID, name
func (h *handshake) metaContext(ctx context.Context, opt option, data []byte) {
	set := opt == optSetMetaContext
	if set { // a failing SET deselects, too
		h.selected, h.chosen = "", false
		if h.mode == simpleReplies {
			h.refuse(opt, repErrInvalid, "structured replies must be negotiated first")
			return
		}
	}
	name, queries, why := parseMetaContext(data)
	if why != "" {
		h.refuse(opt, repErrInvalid, why)
		return
	}
	info, err := h.info(ctx, name)
	if err != nil {
		h.refuse(opt, optionErrorOf(err), fmt.Sprintf("export %q: %v", name, err))
		return
	}
	found := len(queries) == 0 && !set // no query lists all
	for _, q := range queries {
		// "base:" alone is a wildcard for listing and selects nothing.
		found = found || q == allocationContextName || q == "base:" && !set
	}
	if found {
		var id uint32 // reserved in lists
		if set {
			id = allocationContext
			h.selected, h.chosen = info.Name, true
		}
		h.reply(opt, repMetaContext, binary.BigEndian.AppendUint32(nil, id), []byte(allocationContextName))
	}
	h.ack(opt)
}

// parseMetaContext takes the data of the two options apart.
func parseMetaContext(data []byte) (name string, queries []string, why string) {
	next := func() (s []byte, ok bool) {
		if len(data) < 4 {
			return nil, false
		}
		n := binary.BigEndian.Uint32(data)
		if uint64(n) > uint64(len(data)-4) {
			return nil, false
		}
		s, data = data[4:4+n], data[4+n:]
		return s, true
	}
	raw, ok := next()
	if !ok || len(data) < 4 {
		return "", nil, "option data is too short"
	}
	if why := badString(raw); why != "" {
		return "", nil, "export name: " + why
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	for range count {
		q, ok := next()
		if !ok {
			return "", nil, "query is longer than the option"
		}
		if why := badString(q); why != "" {
			return "", nil, "query: " + why
		}
		if !strings.Contains(string(q), ":") {
			return "", nil, fmt.Sprintf("query %q has no namespace", q)
		}
		queries = append(queries, string(q))
	}
	if len(data) != 0 {
		return "", nil, "option data is too long for its queries"
	}
	return string(raw), queries, ""
}
