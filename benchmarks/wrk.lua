-- wrk script: posts photographs in turn and counts the answers that are exactly 200.
-- Arguments: the listing of photographs, then a multipart field name, "raw", or "v2" for a raw
-- request of the Open Inference Protocol.
local boundary = "fivecropbenchmarkboundary"
local requests = {}
local threads = {}
local position = 0

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   local field = args[2]
   local headers = {["Content-Type"] = "image/jpeg"}
   local is_form = field ~= "raw" and field ~= "v2"
   if field == "v2" then
      headers["Inference-Header-Content-Length"] = "0"
   end
   if is_form then
      headers["Content-Type"] = "multipart/form-data; boundary=" .. boundary
   end
   for path in io.lines(args[1]) do
      local file = assert(io.open(path, "rb"))
      local body = file:read("*a")
      file:close()
      if is_form then
         body = "--" .. boundary .. "\r\nContent-Disposition: form-data; name=\"" .. field ..
            "\"; filename=\"photo.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n" .. body ..
            "\r\n--" .. boundary .. "--\r\n"
      end
      table.insert(requests, wrk.format("POST", nil, headers, body))
   end
   answered = 0
   accepted = 0
end

function request()
   position = position % #requests + 1
   return requests[position]
end

function response(status)
   answered = answered + 1
   if status == 200 then
      accepted = accepted + 1
   end
end

function done(summary, latency)
   local answered_total, accepted_total = 0, 0
   for _, thread in ipairs(threads) do
      answered_total = answered_total + thread:get("answered")
      accepted_total = accepted_total + thread:get("accepted")
   end
   local errors = summary.errors
   io.write(string.format(
      '\nJSON {"requests": %d, "answered": %d, "accepted": %d, "seconds": %.6f, "p50_ms": %.3f, ' ..
      '"p99_ms": %.3f, "max_ms": %.3f, "socket_errors": %d, "timeouts": %d}\n',
      summary.requests, answered_total, accepted_total, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
      errors.connect + errors.read + errors.write, errors.timeout))
end
