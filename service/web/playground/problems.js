// What each error code means for somebody in front of this page. The service's own sentence is
// shown too; here stands what to do.

export const ADVICE = {
  invalid_argument: ["That cannot be asked", "Change the choice that the service names."],
  bad_json: ["The request was not JSON", "Reload the page."],
  bad_base64: ["The request was damaged", "Reload the page."],
  empty_body: ["The file is empty", "Choose a file that has something in it."],
  url_not_allowed: ["Addresses are not fetched", "Save the image, then drop the file."],
  unauthenticated: ["A valid API key is needed", "Enter a key, at the top of the page."],
  forbidden: ["The key is not for this", "Ask whoever runs the service for a key with this scope."],
  model_not_found: ["This model is not served now", "Choose another; the list has been renewed."],
  model_load_failed: ["The model did not prove itself", "Its operator finds the reason in the log."],
  memory_exceeded: ["The model does not fit into memory", "Its operator can unload another."],
  promotion_refused: ["The new version was not better", "Its operator sees why at the trial."],
  not_found: ["There is nothing at this address", "Reload the page."],
  method_not_allowed: ["The service does not answer this", "Reload the page."],
  request_timeout: ["The upload took too long", "Send a smaller file, or try a better connection."],
  body_too_large: ["The file is too large", "Save it smaller, then try again."],
  headers_too_large: ["The request's headers are too large", "Clear this site's cookies."],
  image_too_large: ["The image has too many pixels", "Scale it down, then try again."],
  unsupported_media: ["This is no image that the service reads", "Convert it to JPEG or PNG."],
  unsupported_encoding: ["The request was encoded in an unknown way", "Reload the page."],
  image_corrupt: ["The image is damaged", "Save or download it again."],
  image_too_complex: ["The file is built too intricately", "Save it anew with an image editor."],
  unsupported_codec: ["This kind of image is not decoded", "Convert it to an ordinary JPEG or PNG."],
  rate_limited: ["This key asked for a lot at once", "Wait a little, then try again."],
  overloaded: ["The service is busy", "Try again in a moment."],
  not_ready: ["The model is not ready", "Try again in a moment."],
  draining: ["The service is stopping", "Try again when it is back."],
  deadline_exceeded: ["The answer took too long", "Try again, or ask for fewer views."],
  inference_failed: ["The model failed on this image", "Its operator finds the reason in the log."],
  nonfinite_output: ["The model answered nonsense", "Tell its operator: the log names the image."],
  internal: ["Something went wrong inside", "Tell its operator the request's id."],
};

const UNREACHABLE = ["The service does not answer", "Is it running? Is the network up?"];

/** An answer that is none. `code` is "unreachable" when there was no answer at all. */
export class Problem extends Error {
  constructor(code, detail, requestId = null, retryAfter = null) {
    super(detail);
    this.code = code;
    this.requestId = requestId;
    [this.title, this.advice] = ADVICE[code] || UNREACHABLE;
    if (retryAfter) this.advice += ` The service suggests ${retryAfter} s.`;
  }
}
